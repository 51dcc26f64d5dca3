"""The data module: TerraTorch's generic multi-modal one, with defaults and checks added."""

from __future__ import annotations

import logging
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from terratorch.datamodules import GenericMultiModalDataModule
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from tqdm import tqdm

from terramind_plugin.data.arguments import Settled, kept_settings, make_cache, settle
from terramind_plugin.data.cache_log import CacheLog, find_caches
from terramind_plugin.data.classes import class_names_of, compare_class_names
from terramind_plugin.data.dataset import CHECKED, UnlabelledSamples
from terramind_plugin.data.dates import ROOTS, dates_taken, find_by_band, spread_entries, spread_names
from terramind_plugin.data.guard import guard
from terramind_plugin.data.loading import ModalityBatches, Repeated, check_sizes, collate
from terramind_plugin.data.reading import ReadingPlan
from terramind_plugin.data.slots import Slots
from terramind_plugin.data.standardising import BatchStandardisation
from terramind_plugin.data.statistics import RunningStatistics, Statistics
from terramind_plugin.data.terratorch_internals import collate_samples
from terramind_plugin.data.writer import take_over
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.samples.checks.run import check_cheaply
from terramind_plugin.samples.plan import describe_data
from terramind_plugin.samples.tables import LabelPlan

logger = logging.getLogger("terramind_plugin")

FAR_FROM_MEAN = 2.0
"""Minimum distance of a fill value from the mean that is reported, in standard deviations."""


class TerraMindDataModule(GenericMultiModalDataModule):  # type: ignore[misc]
    """Batches of several modalities for TerraTorch's tasks.

    It does all that TerraTorch's GenericMultiModalDataModule does, with these differences: means and stds come from
    the modality table; pixels without data are set to the mean of their band; `allow_missing_modalities` works with any
    batch size and tells the backbone which modalities are missing; prediction needs neither labels nor other splits;
    the batch size also holds under DDP. If a split file does not match the data, a file has another size, or a label is
    out of range, the run stops with the name of the file.

    With `expand_temporal_dimension: true` images are time series [bands, dates, H, W]. Either a file holds all dates of
    its modality one after the other, or `data_root` or `image_grep` of a modality lists an entry for each date in the
    order of time, e.g. {S2L2A: [before, after]}. A modality with one date is repeated for each date of the others.

    Args:
        batch_size: Number of samples in a batch, per process.
        modalities: Names from the modality table, longer names that contain one, such as S2L2A_before, or other names
            with given means and stds. {name: modality} uses the bands and statistics of a modality. If coords has no
            folder, it is the middle of each chip, from its georeference.
        means: Mean of each band, by modality (default: from the modality table).
        stds: Standard deviation of each band, by modality (default: from the modality table).
        offsets: Number added to all values of a modality while reading, before constant_scale, e.g. {S2L2A: -1000}
            for Sentinel-2 files since processing baseline 04.00; 0 keeps the values.
        predict_split: Split file for prediction; None predicts every file in predict_data_root.
        no_data_replace: Value for pixels without data; None uses the mean of their band.
        allow_missing_modalities: Accept samples that lack some modality; batches then contain 'modality_mask'.
        ignore_empty_pixels: Replace the label by the task's ignore_index where no modality has data, so that neither
            loss nor metrics count these pixels.
        train_repeats: Number of times that an epoch uses each training sample, each time with new augmentation.
        check_stackability: Compare the sizes of all files when a loader is made, unless a transform changes them.
        check_values: Check the values of a few samples when training starts, and log the findings.
        temporal_channel_major: True if files of a series hold all dates of a band together, not all bands of a date;
            or a list of the modalities whose files do.
        data_root: Folder of each modality, or its folders in the order of time, if all splits share folders.
        train_data_root: As `data_root`, for training.
        val_data_root: As `data_root`, for validation.
        test_data_root: As `data_root`, for the test.
        predict_data_root: As `data_root`, for prediction.
        image_grep: Pattern of the file names of each modality, or its patterns in the order of time.
        cache: Folder for decoded chips, which training, validation and test read from the second epoch on. Runs may
            share it. A file that has changed is decoded again.
        cache_gib: Maximum size of that folder in GiB. If it is reached, files that were not used for a day are deleted.
        kwargs: Further arguments of GenericMultiModalDataModule.

    Raises:
        ConfigError: An argument is wrong; the message says what is possible.
    """

    dataset_class: Any
    collate_fn: Any
    class_names: list[str] | None
    aug: Any

    def __init__(
        self,
        batch_size: int,
        modalities: list[str | dict[str, str | int]],
        means: dict[str, list[float]] | None = None,
        stds: dict[str, list[float]] | None = None,
        offsets: dict[str, float] | None = None,
        predict_split: Path | str | None = None,
        no_data_replace: float | None = None,
        allow_missing_modalities: bool = False,
        ignore_empty_pixels: bool = False,
        train_repeats: int = 1,
        check_stackability: bool = True,
        check_values: bool = True,
        temporal_channel_major: bool | list[str] = False,
        data_root: dict[str, Any] | str | None = None,
        train_data_root: dict[str, Any] | str | None = None,
        val_data_root: dict[str, Any] | str | None = None,
        test_data_root: dict[str, Any] | str | None = None,
        predict_data_root: dict[str, Any] | str | None = None,
        image_grep: dict[str, Any] | str | None = None,
        cache: Path | str | None = None,
        cache_gib: float = 50.0,
        **kwargs: Any,
    ) -> None:
        if train_repeats < 1:
            raise ConfigError(f"train_repeats must be at least 1, got {train_repeats}.")
        self.cache = make_cache(cache, cache_gib)
        folders = (data_root, train_data_root, val_data_root, test_data_root, predict_data_root)
        kwargs |= {**dict(zip(ROOTS, folders, strict=True)), "image_grep": image_grep}
        settled = settle(modalities, means, stds, offsets, allow_missing_modalities, kwargs)
        self.counts = settled.counts
        self.temporal = bool(kwargs.get("expand_temporal_dimension"))
        self.by_band = find_by_band(temporal_channel_major, settled.modalities, self.temporal)
        kwargs.update(settled.arguments)  # jsonargparse finds the arguments of the parent by **kwargs below
        self.offsets = {name: float(value) for name, value in (offsets or {}).items()}
        self.sources, self.positions = settled.sources, settled.positions
        self.bands_read, self.band_means, self.band_stds = settled.bands, settled.means, settled.stds
        super().__init__(
            batch_size=batch_size,
            modalities=spread_names(settled.modalities, self.counts),
            means=spread_entries({**(means or {}), **self.band_means}, self.counts),
            stds=spread_entries({**(stds or {}), **self.band_stds}, self.counts),
            no_data_replace=no_data_replace,
            check_stackability=False,
            **kwargs,
        )
        self._undo_stand_ins(settled)
        # Kept from the parent, which would set the batch size to 1.
        self.allow_missing_modalities = allow_missing_modalities
        self.ignore_empty_pixels = ignore_empty_pixels
        self.train_repeats = train_repeats
        self.compare_sizes = check_stackability
        self.check_values = check_values
        self.predict_split = predict_split
        self.kept = kept_settings({**kwargs, "no_data_replace": no_data_replace})
        """Settings that files of the same kind are read with, as plain values."""
        self._prepare(kwargs.get("task"))

    def _prepare(self, task: str | None) -> None:
        """Set the attributes that follow from the arguments."""
        self.task, self.keep_missing_pixels = task, False
        self.samples_class, self.slots = CHECKED[self.dataset_class], Slots()
        if self.class_names and self.num_classes and len(self.class_names) != self.num_classes:
            raise ConfigError(f"class_names has {len(self.class_names)} names, but num_classes is {self.num_classes}.")
        if self.collate_fn is collate_samples:
            self.collate_fn = collate
        self.aug = self.aug if self.concat_bands else BatchStandardisation(self.aug.means, self.aug.stds)
        self._warn_of_fill_value()

    def _undo_stand_ins(self, settled: Settled) -> None:
        """Remove the placeholders that the parent required for folders, names and numbers of bands."""
        for split in ("train", "val", "test", "predict"):
            roots = getattr(self, f"{split}_root") or {}
            setattr(self, f"{split}_root", {name: root for name, root in roots.items() if root is not None} or None)
        for name in settled.stand_ins:
            setattr(self, name if "label" in name else name.replace("_data_root", "_root"), None)
        self.modalities = settled.modalities
        if self.concat_bands and max(self.counts.values()) > 1:
            numbers = [list(chain(*named.values())) for named in (self.band_means, self.band_stds)]
            self.aug = type(self.aug)(*numbers)

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
            DataError: The folders do not match the configuration.
        """
        self._check_configured(stage)
        guard(self.trainer)
        names = class_names_of(self._task(), None)
        compare_class_names(self.class_names, names, ("data.init_args", "model.init_args"))
        plan = ReadingPlan(
            means=spread_entries(self.band_means, self.counts),
            fill_with_mean=self.no_data_replace is None,
            temporal=self.temporal,
            by_band=frozenset(spread_names(sorted(self.by_band), self.counts)),
            counts=self.counts,
            taken=dates_taken(self._task()),
            concat_bands=self.concat_bands,
            keep_missing_pixels=self.keep_missing_pixels,
            num_classes=self.num_classes,
            table=self._label_plan(),
            label_ids=self._label_ids() if stage != "predict" else None,
            empty_label=self._empty_label() if self.ignore_empty_pixels and stage != "predict" else None,
            constant_scale=self.constant_scale or {},
            offsets=spread_entries(self.offsets, self.counts),
            sources=self.sources,
            positions=self.positions,
            position_images=getattr(self._task(), "tiled_inference_parameters", None) is not None,
            cache=self.cache if stage != "predict" else None,
            slots=self.slots,
        )
        make = partial(self.samples_class, plan=plan)
        self.dataset_class = partial(make, split=self.predict_split) if stage == "predict" else make
        super().setup(stage)
        for name in ("train", "val", "test", "predict"):
            dataset = getattr(self, f"{name}_dataset", None)
            if dataset is not None and hasattr(dataset, "class_names"):
                dataset.class_names = self.class_names
        self._add_cache_log()
        if stage == "predict":
            take_over(self.trainer)
        if stage == "fit" and self.check_values and (self.trainer is None or self.trainer.is_global_zero):
            self._report_values()

    def state_dict(self) -> dict[str, Any]:
        """Return the properties that a prediction must share with the training; Lightning saves them in checkpoints."""
        return {
            "class_names": class_names_of(self._task(), self),
            "means": {name: list(values) for name, values in self.band_means.items()},
            "stds": {name: list(values) for name, values in self.band_stds.items()},
            "modalities": [
                {name: self.sources[name]} if self.sources.get(name, name) != name else name for name in self.modalities
            ]
            + [self.positions] * (self.positions is not None),
            "offsets": dict(self.offsets),
            **self.kept,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the configuration with the training's, and take over its class names if there are none.

        Args:
            state_dict: Result of `state_dict`.

        Raises:
            ConfigError: The classes have other names or another order.
        """
        compare_class_names(
            class_names_of(self._task(), self), state_dict.get("class_names"), ("the configuration", "the checkpoint")
        )
        self.class_names = self.class_names or state_dict.get("class_names") or None
        for what, here in (("means", self.band_means), ("stds", self.band_stds)):
            there = state_dict.get(what) or {}
            other = [name for name in here if name in there and not np.allclose(here[name], there[name], rtol=1e-4)]
            if other:
                logger.warning(
                    "%s of %s are %s here, %s in the checkpoint: the model was trained with other numbers.",
                    what,
                    other[0],
                    here[other[0]],
                    there[other[0]],
                )

    def _report_values(self) -> None:
        plan = describe_data(self)
        for finding in check_cheaply(plan) if plan is not None else ():
            if finding.verdict in ("warning", "error"):
                logger.warning("%s terramind check says more. check_values: false turns this check off.", finding)

    def _task(self) -> Any:
        """Return the task in use, or None outside of a run."""
        return getattr(self.trainer, "lightning_module", None)

    def _runs_on_cuda(self) -> bool:
        strategy = getattr(self.trainer, "strategy", None)
        return getattr(getattr(strategy, "root_device", None), "type", None) == "cuda"

    def _add_cache_log(self) -> None:
        """Add the callback that logs a cache's figures."""
        module = self._task()
        callbacks = getattr(self.trainer, "callbacks", None)
        if module is None or callbacks is None or any(isinstance(callback, CacheLog) for callback in callbacks):
            return
        if any(True for _ in find_caches(module)):
            callbacks.append(CacheLog())

    def _check_configured(self, stage: str) -> None:
        stage = str(getattr(stage, "value", stage))  # Lightning passes a member of an enum
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
        """Return the class ids that labels may hold, or None if the task's ignored id is unknown."""
        module = self._task()
        if module is None or self.num_classes is None or "ignore_index" not in module.hparams:
            return None
        ignored = module.hparams["ignore_index"]
        return tuple(range(self.num_classes)) + (() if ignored is None else (int(ignored),))

    def _label_plan(self) -> LabelPlan:
        """Return the requirements of the task in use on a table of labels."""
        hparams = getattr(self._task(), "hparams", None) or {}
        ignored = hparams.get("ignore_index")
        can_ignore = self.task != "multilabel_classification" and ignored is not None
        outputs = (hparams.get("model_args") or {}).get("num_outputs") or hparams.get("num_outputs")
        return LabelPlan(
            task=self.task,
            class_names=class_names_of(self._task(), self),
            num_classes=self.num_classes,
            num_outputs=outputs if self.task == "scalar_regression" else None,
            missing=float(ignored) if can_ignore and ignored == self.no_label_replace else None,
        )

    def _empty_label(self) -> int:
        """Return the label that the task ignores or, without a task, the value for missing labels."""
        module = self._task()
        label = self.no_label_replace if module is None else module.hparams.get("ignore_index")
        if label is None:
            raise ConfigError("ignore_empty_pixels needs an ignore_index of the task, e.g. ignore_index: -1.")
        return int(label)

    def _dataloader_factory(self, split: str) -> DataLoader[Any]:
        """Return the loader of a split; Lightning can shard it, so a batch has `batch_size` samples under DDP."""
        dataset = self._valid_attribute(f"{split}_dataset", "dataset")
        pinned = self.slots.pinned = torch.cuda.is_available() and (self.pin_memory or self._runs_on_cuda())
        batch_size = self._valid_attribute(f"{split}_batch_size", "batch_size")
        train = split == "train"
        samples = Repeated(dataset, self.train_repeats) if train and self.train_repeats > 1 else dataset
        drop_last = train and self.drop_last
        processes = self.trainer.world_size if self.trainer is not None else 1
        if drop_last and len(samples) < batch_size * processes:
            raise ConfigError(
                f"No training batch: {len(samples)} training samples do not fill one batch of {batch_size} on "
                f"{processes} process{'es' if processes > 1 else ''}. Lower batch_size, or set drop_last: false."
            )
        transform = getattr(self, "test_transform" if split == "predict" else f"{split}_transform")
        if self.compare_sizes and batch_size > 1 and transform is None:
            check_sizes(dataset.samples)
        batches: dict[str, Any] = {"batch_size": batch_size, "shuffle": train, "drop_last": drop_last}
        if self.sample_num_modalities:
            order: Any = RandomSampler(samples) if train else SequentialSampler(samples)
            drawn = (self.modalities, self.sample_num_modalities, self.sample_replace)
            batches = {"batch_sampler": ModalityBatches(order, batch_size, drop_last, *drawn)}
        return DataLoader(
            samples,
            **batches,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=pinned or self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )


def band_statistics(datamodule: Any) -> dict[str, Statistics]:
    """Return statistics of the training samples, by modality. Missing values are left out.

    Offsets and constant_scale are applied; augmentation is not.

    Args:
        datamodule: A TerraMindDataModule.

    Raises:
        DataError: A band has no pixel with data.
    """
    datamodule.train_transform = None
    datamodule.keep_missing_pixels = True
    datamodule.check_values = False
    datamodule.setup("fit")
    loader = DataLoader(datamodule.train_dataset, batch_size=None, num_workers=datamodule.num_workers)
    running: dict[str, RunningStatistics] = {}
    for sample in tqdm(loader, desc="Reading the training data"):
        images = sample["image"] if isinstance(sample["image"], dict) else {"image": sample["image"]}
        for name, image in images.items():
            values = image.float().flatten(1).numpy()
            running.setdefault(name, RunningStatistics(len(values))).add(values)
    for name, numbers in running.items():
        if not numbers.count.all():
            band = int(numbers.count.argmin()) + 1
            raise DataError(f"{name}: band {band} has no pixel with data in the training samples.")
    return {name: numbers.result() for name, numbers in running.items()}
