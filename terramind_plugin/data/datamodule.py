"""The data module: TerraTorch's generic multi-modal one, without the boilerplate and the traps."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rasterio
from terratorch.datamodules import GenericMultiModalDataModule
from terratorch.datamodules.generic_multimodal_data_module import collate_samples
from terratorch.datasets.utils import generate_bands_intervals
from torch.utils.data import DataLoader

from terramind_plugin.contract.plan import describe
from terramind_plugin.contract.run import check_cheaply
from terramind_plugin.data.dataset import CHECKED, ReadingPlan, UnlabelledSamples, collate
from terramind_plugin.errors import ConfigError, DataError, suggest
from terramind_plugin.memo.log import MemoLog, find_memos
from terramind_plugin.modalities import Modality, find, resolve, statistics

logger = logging.getLogger("terramind_plugin")

TRANSFORM_MODULES = ("albumentations", "albumentations.pytorch", "terratorch.datasets.transforms")
"""Where a transform with a short class_path is looked for."""
FAR_FROM_MEAN = 2.0
"""Standard deviations from which on a fill value is reported."""


class TerraMindDataModule(GenericMultiModalDataModule):
    """Batches of several modalities for TerraTorch's tasks.

    Everything TerraTorch's GenericMultiModalDataModule does, with these differences: means and stds come from the
    modality table; pixels without data take their band's mean; `allow_missing_modalities` works with any batch size and
    tells the backbone what is missing; prediction needs neither labels nor other splits; the batch size holds under
    DDP; a split file that does not match the data, a file of another size or a label out of range stops the run with
    the file's name.

    Args:
        batch_size: Samples in a batch, per process.
        modalities: Names of the modality table, or others whose means and stds are given.
        means: Mean of each band by modality; what is left out comes from the table.
        stds: Standard deviation of each band by modality; what is left out comes from the table.
        predict_split: Split file for prediction; None predicts every file in predict_data_root.
        no_data_replace: Number that pixels without data take; None takes the mean of their band.
        allow_missing_modalities: Accept samples that lack some modality; batches then hold 'modality_mask'.
        check_stackability: Compare the sizes of all files when a loader is made, where no transform changes them.
        check_values: Look at the values of a few samples when training starts, and log what is odd about them.
        kwargs: Further arguments of GenericMultiModalDataModule.

    Raises:
        ConfigError: An argument is not possible; the message says what is.
    """

    dataset_class: Any
    collate_fn: Any

    def __init__(
        self,
        batch_size: int,
        modalities: list[str],
        means: dict[str, list[float]] | None = None,
        stds: dict[str, list[float]] | None = None,
        predict_split: Path | str | None = None,
        no_data_replace: float | None = None,
        allow_missing_modalities: bool = False,
        check_stackability: bool = True,
        check_values: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(modalities, str) or not modalities:
            raise ConfigError(f"modalities must be a list such as [S2L1C, S1GRD], got {modalities!r}.")
        for stage in ("train", "val", "test"):
            kwargs[f"{stage}_transform"] = build_transforms(kwargs.get(f"{stage}_transform"), modalities)
        if isinstance(kwargs.get("image_grep"), Mapping):
            kwargs["image_grep"] = dict(kwargs["image_grep"])  # the parent writes into it
        images = kwargs.get("image_modalities") or modalities
        bands = {name: _bands_read(name, kwargs) for name in images}
        self.bands_read = bands
        self.band_means, self.band_stds = _statistics(images, bands, means, stds)
        if kwargs.get("rgb_indices") is None and kwargs.get("rgb_modality") is None:
            kwargs["rgb_indices"] = {images[0]: _rgb_indices(images[0], bands[images[0]])}
        temporal = bool(kwargs.get("expand_temporal_dimension"))
        _check_missing_options(kwargs, allow_missing_modalities, temporal)
        for key in [f"{stage}data_root" for stage in ("", "train_", "val_", "test_", "predict_")]:
            kwargs[key] = _roots(key, kwargs.get(key), modalities, allow_missing_modalities)
        stand_ins = _stand_ins(kwargs, modalities)
        kwargs.update(stand_ins)

        super().__init__(
            batch_size=batch_size,
            modalities=list(modalities),
            means={**(means or {}), **self.band_means},
            stds={**(stds or {}), **self.band_stds},
            no_data_replace=no_data_replace,
            check_stackability=False,
            **kwargs,
        )
        for split in ("train", "val", "test", "predict"):
            roots = getattr(self, f"{split}_root") or {}
            setattr(self, f"{split}_root", {name: root for name, root in roots.items() if root is not None} or None)
        for name in stand_ins:
            setattr(self, name if "label" in name else name.replace("_data_root", "_root"), None)
        # Kept from the parent, which would set the batch size to 1.
        self.allow_missing_modalities = allow_missing_modalities
        self.compare_sizes = check_stackability
        self.check_values = check_values
        self.temporal = temporal
        self.one_class = kwargs.get("task") == "classification"
        self.keep_missing_pixels = False
        self.predict_split = predict_split
        self.samples_class = CHECKED[self.dataset_class]
        if self.collate_fn is collate_samples:
            self.collate_fn = collate
        self._warn_of_fill_value()

    def _warn_of_fill_value(self) -> None:
        value = self.no_data_replace
        if value is None:
            return
        for name, means in self.band_means.items():
            away = [abs(value - mean) / std for mean, std in zip(means, self.band_stds[name], strict=True)]
            if max(away) > FAR_FROM_MEAN:
                logger.warning(
                    "no_data_replace: %g is %.1f standard deviations from the mean of %s. "
                    "Leave no_data_replace out to fill each band with its mean.",
                    value,
                    max(away),
                    name,
                )

    def setup(self, stage: str) -> None:
        """Make the data sets of a stage.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ConfigError: The stage's folders are not configured.
            DataError: They do not hold what the configuration says.
        """
        self._check_configured(stage)
        plan = ReadingPlan(
            means=self.band_means,
            fill_with_mean=self.no_data_replace is None,
            temporal=self.temporal,
            keep_missing_pixels=self.keep_missing_pixels,
            num_classes=self.num_classes,
            one_class=self.one_class,
            label_ids=self._label_ids() if stage != "predict" else None,
            constant_scale=self.constant_scale or {},
        )
        make = partial(self.samples_class, plan=plan)
        self.dataset_class = partial(make, split=self.predict_split) if stage == "predict" else make
        super().setup(stage)
        for name in ("train", "val", "test", "predict"):
            dataset = getattr(self, f"{name}_dataset", None)
            if dataset is not None and hasattr(dataset, "class_names"):
                dataset.class_names = self.class_names
        self._add_memo_log()
        if stage == "fit" and self.check_values and (self.trainer is None or self.trainer.is_global_zero):
            self._report_values()

    def _report_values(self) -> None:
        plan = describe(self)
        for finding in check_cheaply(plan) if plan is not None else ():
            if finding.verdict in ("warning", "error"):
                logger.warning("%s terramind check says more; check_values: false says nothing.", finding)

    def _task(self) -> Any:
        """Return the task in use, or None outside of a run."""
        return getattr(self.trainer, "lightning_module", None)

    def _add_memo_log(self) -> None:
        """Let a memo's figures be logged without a line in the configuration."""
        module = self._task()
        callbacks = getattr(self.trainer, "callbacks", None)
        if module is None or callbacks is None or any(isinstance(callback, MemoLog) for callback in callbacks):
            return
        if any(True for _ in find_memos(module)):
            callbacks.append(MemoLog())

    def _check_configured(self, stage: str) -> None:
        needs = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for split in needs:
            if getattr(self, f"{split}_root") is None:
                raise ConfigError(
                    f"{stage} needs data.init_args.{split}_data_root (or data_root): folders by modality."
                )
            labelled = split != "predict" and self.samples_class is not UnlabelledSamples
            if labelled and getattr(self, f"{split}_label_data_root") is None:
                raise ConfigError(f"{stage} needs data.init_args.{split}_label_data_root (or label_data_root).")

    def _label_ids(self) -> tuple[int, ...] | None:
        """Return the class ids that labels may hold, if the task in use says what it ignores."""
        module = self._task()
        if module is None or self.num_classes is None or "ignore_index" not in module.hparams:
            return None
        ignored = module.hparams["ignore_index"]
        return tuple(range(self.num_classes)) + (() if ignored is None else (int(ignored),))

    def _dataloader_factory(self, split: str) -> DataLoader[Any]:
        """Return the loader of a split; Lightning can shard it, so a batch has `batch_size` samples under DDP."""
        if self.sample_num_modalities:
            return super()._dataloader_factory(split)
        dataset = self._valid_attribute(f"{split}_dataset", "dataset")
        batch_size = self._valid_attribute(f"{split}_batch_size", "batch_size")
        drop_last = split == "train" and self.drop_last
        processes = self.trainer.world_size if self.trainer is not None else 1
        if drop_last and len(dataset) < batch_size * processes:
            raise ConfigError(
                f"No training batch: {len(dataset)} training samples do not fill one batch of {batch_size} on "
                f"{processes} process{'es' if processes > 1 else ''}. Lower batch_size, or set drop_last: false."
            )
        transform = getattr(self, "test_transform" if split == "predict" else f"{split}_transform")
        if self.compare_sizes and batch_size > 1 and transform is None:
            _check_sizes(dataset.samples)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=split == "train",
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )


def _bands_read(name: str, kwargs: Mapping[str, Any]) -> list[Any] | None:
    """Return the names of the bands that the model gets, or None for all of the modality."""
    for key in ("output_bands", "dataset_bands"):
        bands = (kwargs.get(key) or {}).get(name)
        if bands is not None:
            return list(generate_bands_intervals(list(bands)))
    return None


def _roots(key: str, roots: Any, modalities: Sequence[str], allow_missing: bool) -> Any:
    """Return the folders of the modalities in use, None for those that may be missing and have none.

    Raises:
        ConfigError: One has none.
    """
    if not isinstance(roots, Mapping):
        return roots if roots is None else str(roots)
    without = [name for name in modalities if name not in roots]
    if without and not (allow_missing and len(without) < len(modalities)):
        raise ConfigError(f"{key} has no folder for {', '.join(without)}; it has: {', '.join(map(str, roots))}.")
    return {name: roots.get(name) for name in modalities}


def _stand_ins(kwargs: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Any]:
    """Return values for the folders that the parent insists on, and that a run of prediction alone does not need."""
    stand_ins: dict[str, Any] = {}
    for split in ("train", "val"):
        if kwargs.get(f"{split}_data_root") is None and kwargs.get("data_root") is None:
            stand_ins[f"{split}_data_root"] = dict.fromkeys(modalities, os.curdir)
        labels = kwargs.get(f"{split}_label_data_root") or kwargs.get("label_data_root")
        if kwargs.get("task") is not None and labels is None:
            stand_ins[f"{split}_label_data_root"] = os.curdir
    return stand_ins


def _check_missing_options(kwargs: Mapping[str, Any], allow_missing: bool, temporal: bool) -> None:
    if allow_missing and temporal:
        raise ConfigError(
            "allow_missing_modalities does not work with expand_temporal_dimension: TerraTorch's temporal wrapper "
            "does not pass the mask on to the backbone. Set one of them to false."
        )
    if allow_missing and kwargs.get("concat_bands"):
        raise ConfigError("allow_missing_modalities does not work with concat_bands. Set one of them to false.")
    if temporal and not kwargs.get("dataset_bands"):
        raise ConfigError(
            "expand_temporal_dimension needs dataset_bands: the bands of one date, e.g. {S2L2A: [BLUE, GREEN, RED]}."
        )


def _statistics(
    names: Sequence[str],
    bands: Mapping[str, list[Any] | None],
    means: Mapping[str, Sequence[float]] | None,
    stds: Mapping[str, Sequence[float]] | None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return mean and standard deviation of every band that is read, given ones first, then those of the table."""
    result: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for name in names:
        given = ((means or {}).get(name), (stds or {}).get(name))
        if None in given:
            table = _table_statistics(_known(name, given), bands[name])
            given = (given[0] if given[0] is not None else table[0], given[1] if given[1] is not None else table[1])
        for target, values in zip(result, given, strict=True):
            target[name] = [float(value) for value in values or ()]
        count = None if bands[name] is None else len(bands[name] or ())
        lengths = (len(result[0][name]), len(result[1][name]))
        if lengths[0] != lengths[1] or count not in (None, lengths[0]):
            raise ConfigError(
                f"{name}: {lengths[0]} means and {lengths[1]} stds"
                + (f" for {count} bands" if count is not None else "")
                + ". Give one mean and one std a band, or leave them out to take the pre-training ones."
            )
        if min(result[1][name]) <= 0:
            raise ConfigError(f"{name}: stds must be positive, got {result[1][name]}.")
    return result


def _known(name: str, given: tuple[Any, Any]) -> Modality:
    try:
        return resolve(name)
    except ConfigError as error:
        raise ConfigError(f"{error} For a modality of your own give its means and stds.") from None


def _table_statistics(modality: Modality, bands: list[Any] | None) -> tuple[list[float], list[float]]:
    if bands is None:
        return list(modality.mean), list(modality.std)
    try:
        return statistics(modality, bands)
    except ConfigError as error:
        raise ConfigError(f"{error} For bands of your own give means and stds of {modality.name}.") from None


def _rgb_indices(name: str, bands: list[Any] | None) -> list[int]:
    """Return the positions of red, green and blue among the bands that are read, or of the first band."""
    modality = find(name)
    if modality is None:
        return [0]
    if bands is None:
        return list(modality.rgb)
    positions = [modality.find_band(band) for band in bands]
    return [positions.index(i) for i in modality.rgb] if set(modality.rgb) <= set(positions) else [0]


def _check_sizes(samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise if rasters of a data set differ in size, after reading their headers.

    Raises:
        DataError: Two files differ; the message names them.
    """
    first: dict[str, tuple[Any, tuple[int, int]]] = {}
    for sample in samples:
        for name, path in sample.items():
            if not isinstance(path, str) or not path.lower().endswith((".tif", ".tiff")):
                continue
            with rasterio.open(path) as raster:
                size = raster.shape
            known = first.setdefault(name, (path, size))
            if known[1] != size:
                raise DataError(
                    f"{name} files differ in size: {known[0]} {list(known[1])}, {path} {list(size)}. "
                    "Cut them to one size, or use batch_size: 1 or check_stackability: false with a crop."
                )


def build_transforms(transforms: Any, modalities: Sequence[str] = ()) -> Any:
    """Return transforms with every {class_path, init_args} made into an object.

    TerraTorch leaves a short class_path such as ToTensorV2 to jsonargparse, which does not know it.

    Args:
        transforms: A list of transforms and such mappings, a mapping from modality to such lists, or None.
        modalities: All modalities; in a mapping, those it leaves out only become tensors.

    Raises:
        ConfigError: There is no such transform, or it does not take these arguments.
    """
    if isinstance(transforms, Mapping):
        as_tensor = {name: [{"class_path": "ToTensorV2"}] for name in modalities}
        return {name: build_transforms(entries) for name, entries in {**as_tensor, **transforms}.items()}
    if not isinstance(transforms, list | tuple):
        return transforms
    return [_build_transform(entry) if isinstance(entry, Mapping) else entry for entry in transforms]


def _build_transform(entry: Mapping[str, Any]) -> Any:
    class_path = entry.get("class_path")
    if not isinstance(class_path, str):
        raise ConfigError(f"A transform needs a class_path, e.g. albumentations.D4; got {dict(entry)}.")
    module_name, _, class_name = class_path.rpartition(".")
    known: list[str] = []
    for name in (module_name,) if module_name else TRANSFORM_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"Transform {class_path}: {error}.") from None
        if hasattr(module, class_name):
            # 'always_apply' was an argument of albumentations 1 and means p=1.
            arguments = {k: v for k, v in (entry.get("init_args") or {}).items() if k != "always_apply"}
            try:
                return getattr(module, class_name)(**arguments)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"Transform {class_path}: {error}") from None
        known += dir(module)
    raise ConfigError(f"Unknown transform '{class_path}'.{suggest(class_name, known)}")
