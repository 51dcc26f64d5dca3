"""TerraTorch's multi-modal data sets with checks that name the file and with explicit missing data."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from terratorch.datasets import (
    GenericMultimodalDataset,
    GenericMultimodalPixelwiseRegressionDataset,
    GenericMultimodalScalarDataset,
    GenericMultimodalSegmentationDataset,
)
from torch import Tensor

from terramind_plugin.data.dates import by_date, has_data, join_dates, repeat_single, spread_names
from terramind_plugin.data.loading import Pick
from terramind_plugin.data.reading import FAR_VALUES, ReadingPlan, by_name, without_odd
from terramind_plugin.data.terratorch_internals import generate_bands_intervals
from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import find
from terramind_plugin.raster.bands import check_one_band
from terramind_plugin.raster.chips import read_image
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.georeference import find_centre
from terramind_plugin.raster.missing import FAR
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.dates import modality_of
from terramind_plugin.samples.layout import LABEL, TABLES, Layout, read_split
from terramind_plugin.samples.tables import LabelTable

logger = logging.getLogger("terramind_plugin")


class CheckedSamples(GenericMultimodalDataset):  # type: ignore[misc]
    """Mix-in for a TerraTorch data set: checks samples, fills gaps and adds a mask of missing modalities.

    Args:
        data_root: Folder or table by modality.
        plan: Arguments of reading.
        split: Split file.
        kwargs: Arguments of the TerraTorch data set.

    Raises:
        DataError: A folder or file is missing or not what the configuration says.
    """

    filter_indices: dict[str, list[int]]

    def __init__(
        self,
        data_root: dict[str, str | os.PathLike[str]],
        *,
        plan: ReadingPlan,
        split: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.allow_missing = kwargs.get("allow_missing_modalities", False)
        self._warned: set[str] = set()
        self._places: dict[Any, tuple[float, float] | None] = {}
        self._empty: list[NDArray[np.bool_]] = []
        roots = {name: str(root) for name, root in data_root.items()}
        labels = kwargs.get("label_data_root")
        _check_roots(roots, labels)
        self.expected = list(kwargs.get("image_modalities") or roots)
        kwargs["image_modalities"] = [name for name in self.expected if name in roots]
        if plan.temporal:
            # Dates are taken apart here: TerraTorch's own way needs bands to be selected and mixes up the axes.
            kwargs |= {"expand_temporal_dimension": False, "concat_bands": False}
        layout = Layout(
            {**roots, **({} if labels is None else {LABEL: labels})},
            {**(kwargs.get("image_grep") or dict.fromkeys(roots, "*")), LABEL: kwargs.get("label_grep") or "*"},
            prefix=kwargs.get("prefix"),
            substrings=kwargs.get("allow_substring_file_names", True),
            optional=list(roots) if self.allow_missing else (),
        )
        ids = [] if split is None else read_split(split)
        samples = layout.listed(ids)
        if not kwargs.get("skip_file_checks"):
            layout.check(samples, str(split))
        table = self._read_table(labels)
        if table is not None:
            table.check_ids(samples, str(split))
        with tempfile.TemporaryDirectory() as scratch:
            if table is not None:
                kwargs["label_data_root"] = str(Path(scratch, "rows.csv"))
                table.write_row_numbers(Path(scratch, "rows.csv"))
            path = split
            if split is not None and Path(split).suffix not in TABLES:
                # TerraTorch takes a blank line for a sample, so it gets the list without.
                path = Path(scratch, "split.txt")
                path.write_text("\n".join(ids), encoding="utf-8")
            try:
                super().__init__(roots, split=path, **kwargs)
            except KeyError as error:
                tables = [root for root in [*roots.values(), labels] if root is not None and os.path.isfile(root)]
                raise DataError(f"Sample {error} is not in the index of {' or '.join(map(str, tables))}.") from None
        if table is not None:
            for sample in self.samples:
                sample["mask"] = table.labels(int(sample["mask"][0]))
        self._mend_transform(labelled=labels is not None)
        self.split_file = split
        first = self.modalities[0]
        if split is None and not self.allow_missing and first in layout.folders:
            _report_left_out(len(layout.found()), len(self.samples), roots[first])
        self._selection = {}
        if plan.temporal:
            self._selection = {name: self._select(name) for name in self.image_modalities}
            self.filter_indices = {}

    def _mend_transform(self, *, labelled: bool) -> None:
        """Let transforms leave labels alone where TerraTorch's would fail at them."""
        by_modality = getattr(self.transform, "transforms", None)
        if isinstance(by_modality, dict):
            by_modality.setdefault("mask", _label_tensor)
        if not labelled and hasattr(self.transform, "non_image_modalities"):
            others = self.transform.non_image_modalities
            self.transform.non_image_modalities = [name for name in others if name != "label"]

    def _read_table(self, labels: Any) -> LabelTable | None:
        """Return the table of labels, or None where labels are files."""
        is_table = isinstance(self, GenericMultimodalScalarDataset) and labels is not None and os.path.isfile(labels)
        return LabelTable(labels, self.plan.table) if is_table else None

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Return one sample: 'image' by modality, 'mask' or 'label', 'filename', and 'modality_mask' if configured.

        Images are float32 [bands, H, W], or [bands, dates, H, W]. A modality that the sample lacks is all NaN and
        False in 'modality_mask', a series at the dates that it lacks; 'filename' then repeats another file of the
        sample.
        """
        self._seed_transforms()
        self._empty = []
        sample: dict[str, Any] = super().__getitem__(self._with_label(index) if isinstance(index, tuple) else index)
        if self.plan.table.task == "classification" and "label" in sample:
            sample["label"] = self._class_of(sample)
        if not isinstance(sample["image"], dict):
            return sample
        if self.plan.temporal:
            for name, (_, selected) in self._selection.items():
                if name in sample["image"]:
                    sample["image"][name] = rearrange(sample["image"][name], "(t c) h w -> c t h w", c=len(selected))
        if self.allow_missing:
            self._add_missing(sample)
        if self.plan.temporal:
            images = join_dates(sample["image"], self.plan.counts, sample["filename"])
            sample["image"] = repeat_single(images, sample["filename"], self.plan.taken)
        if self.allow_missing:
            named = {name: sample["image"][name] for name in self.expected if name in sample["image"]}
            sample["modality_mask"] = {name: has_data(image, dated=self.plan.temporal) for name, image in named.items()}
        if self.plan.temporal and self.plan.concat_bands:
            sample["image"] = torch.cat(list(sample["image"].values()))
        if self.plan.positions is not None:
            self._add_position(sample, self.plan.positions)
        return sample

    def _add_position(self, sample: dict[str, Any], name: str) -> None:
        """Add longitude and latitude of a sample's middle, float32 [2] in degrees, from its first file that has them.

        Raises:
            DataError: No file has a georeference, and none may be missing.
        """
        files = [path for key, path in sample["filename"].items() if key in self.image_modalities]
        found = next((here for path in dict.fromkeys(files) if (here := self._locate(path)) is not None), None)
        if found is None and not self.allow_missing:
            raise DataError(
                f"{files[0]} has no georeference, so {name} of the sample is unknown. Leave {name} out of modalities, "
                f"or give a table of longitude and latitude by sample: data_root: {{{name}: FILE.csv}}."
            )
        position = torch.tensor(found or (torch.nan, torch.nan))
        if self.plan.position_images:
            size = next(iter(sample["image"].values())).shape[1:]  # with dates, if there are any
            position = position.view(2, *[1] * len(size)).expand(2, *size).clone()
        sample["image"][name] = position
        if self.allow_missing:
            sample["modality_mask"][name] = torch.tensor(found is not None)

    def _locate(self, path: Any) -> tuple[float, float] | None:
        """Return the position of a file's middle, which is read once, or None if the file does not say it."""
        if path not in self._places:
            self._places[path] = find_centre(path)
        return self._places[path]

    def _with_label(self, pick: Pick) -> Pick:
        """Return the number of a sample, with those of the drawn modalities that it has and with its label."""
        number, drawn = pick
        files = self.samples[number]
        names = [name for name in spread_names(drawn, self.plan.counts) if name in files]
        names = names or [name for name in self.image_modalities if name in files]
        return number, [*names, *(["mask"] if "mask" in files else [])]

    def _seed_transforms(self) -> None:
        """Seed augmentation from seed_everything, differently for each worker process and epoch.

        Albumentations has a random generator of its own, of which each worker process has a copy.
        """
        transforms = getattr(self.transform, "transforms", None)
        for transform in transforms.values() if isinstance(transforms, Mapping) else [transforms]:
            reseed = getattr(transform, "set_random_seed", None)
            if reseed is not None:
                reseed(int(torch.randint(2**31, ())))

    def _class_of(self, sample: Mapping[str, Any]) -> Tensor:
        """Return the class id of a sample without dimensions; TerraTorch returns a row of the table."""
        label = torch.as_tensor(sample["label"]).flatten()
        ignored = len(label) == 1 and label.item() == self.plan.table.missing
        if len(label) != 1 or not (ignored or 0 <= label.item() < (self.plan.num_classes or torch.inf)):
            file = next(iter(sample["filename"].values()))
            shown = ", ".join(f"{value:g}" for value in label[:5].tolist()) + (", ..." if len(label) > 5 else "")
            raise DataError(
                f"The label of {file} holds {len(label)} values ({shown}), expected one class id from 0 to num_classes "
                "- 1, from a table. Several labels a sample need task: multilabel_classification, one for each pixel "
                "task: segmentation."
            )
        return label[0].long()

    def _add_missing(self, sample: dict[str, Any]) -> None:
        """Add an image of NaN, and the name of another file, for each file that the sample lacks."""
        images = sample["image"]
        some = next(images[name] for name in self.expected if name in images)
        files = sample["filename"]
        a_file = next(files[name] for name in self.expected if name in files)
        dates = [1] if self.plan.temporal else []
        for name in self.expected:
            if name not in images:
                images[name] = torch.full((len(self.plan.means[name]), *dates, *some.shape[-2:]), torch.nan)
        order = [*self.expected, *self.non_image_modalities]
        sample["image"] = {name: images[name] for name in order if name in images}
        sample["filename"] = {name: files.get(name, a_file) for name in [*self.expected, *files]}

    def _load_file(self, path: Any, nan_replace: float | None = None, modality: str | None = None) -> NDArray[Any]:
        is_image, own = modality in self.image_modalities, modality_of(str(modality))
        entry = self.plan.sources.get(own, own)
        names: Sequence[str | None] = ()
        try:
            if is_raster(path):
                bands = (self.dataset_bands or {}).get(str(modality)) or _band_names(entry)
                name = raster_name(path, entry if is_image else "", bands)
                image = read_image(name, lambda nodata: modality == "mask" and self._is_a_class(path, nodata))
                data, names = image.values, image.descriptions
                if image.far:
                    self._warn_once(FAR_VALUES % (path, FAR, modality), key=f"far {modality}")
            else:
                data = without_odd(path, super()._load_file(path, None, modality))
        except DataError:
            raise
        except (*GDAL_ERRORS, ValueError) as error:
            raise DataError(f"{path} cannot be read as {modality}: {error}") from error
        if not is_image and nan_replace is not None:
            data = np.nan_to_num(data, nan=nan_replace)
        if modality == "mask":
            if not self.scalar_label and data.ndim == 3:
                check_one_band(path, len(data))
            # Signed: TerraTorch subtracts 1 for reduce_zero_label, and an unsigned 0 would become the largest number.
            label = self._check_label(path, data if self.scalar_label else data.astype(np.float32))
            return label if self.plan.empty_label is None else self._ignore_empty(label, self.plan.empty_label)
        if not is_image:
            return data
        name = str(modality)
        data = data.astype(np.float32) + np.float32(self.plan.offsets.get(name, 0.0))
        if data.ndim != 3:
            return data
        if any(names):
            bands = (self.dataset_bands or {}).get(name)
            data = by_name(
                path,
                data,
                names,
                self.plan.sources.get(own, name),
                bands,
                len(self.plan.means.get(name, ())),
                dates=self.plan.temporal,
                by_band=name in self.plan.by_band,
            )
        return self._fill(path, self._select_bands(path, data, name), name)

    def _is_a_class(self, path: Any, nodata: float | None) -> bool:
        """Return whether a label file's nodata value is a class id, so that masking it would remove the class."""
        classes = self.plan.num_classes
        if classes is None or self.scalar_label or nodata is None:
            return False
        first = 0 if not self.reduce_zero_label else -1
        if not first <= nodata - self.reduce_zero_label < classes:
            return False
        if not self.reduce_zero_label:
            self._warn_once(f"{path}: its nodata value {nodata:g} is also the id of a class and is taken as that class")
        return True

    def _select_bands(self, path: Any, data: NDArray[Any], modality: str) -> NDArray[Any]:
        """Return the bands that are read, [bands, H, W] or, with dates, [dates * bands, H, W]."""
        if modality in self._selection:
            count, selected = self._selection[modality]
            dated = by_date(path, data, count, modality, by_band=modality in self.plan.by_band)
            return rearrange(dated[:, selected], "t c h w -> (t c) h w")
        expected = len(self.plan.means.get(modality, ())) or data.shape[0]
        if modality in self.filter_indices:
            expected = len(self.dataset_bands[modality])
        if data.shape[0] != expected:
            raise DataError(
                f"{path} has {data.shape[0]} bands, expected {expected} for {modality}. Name the bands of the files in "
                f"dataset_bands: {{{modality}: [...]}} and those the model gets in output_bands, and see that means "
                "and stds have one number a band."
            )
        return data

    def _select(self, modality: str) -> tuple[int, list[int]]:
        """Return the number of bands of one date in the files, and the positions among them of the model's bands."""
        stored = (self.dataset_bands or {}).get(modality)
        if stored is None:
            count = len(self.plan.means[modality])
            return count, list(range(count))
        wanted = generate_bands_intervals(self.output_bands.get(modality, stored))
        return len(stored), [stored.index(band) for band in wanted]

    def _fill(self, path: Any, data: NDArray[Any], modality: str) -> NDArray[Any]:
        """Return the image without NaN, except images or dates that are all NaN where modalities may be missing."""
        empty = np.isnan(data)
        if self.plan.empty_label is not None:
            self._empty.append(empty.all(axis=0))
        if self.plan.keep_missing_pixels or not empty.any():
            return data
        dates = len(data) // len(self._selection[modality][1]) if modality in self._selection else 1
        lost = empty.reshape(dates, -1).all(axis=1)
        if lost.all() and self.allow_missing:
            return data
        if lost.any() and self.allow_missing:
            empty &= ~np.repeat(lost, len(data) // dates)[:, None, None]
        elif lost.any():
            which = "" if dates == 1 else f" of date {int(lost.argmax()) + 1}"
            self._warn_once(f"{path}: no pixel{which} of {modality} has data; it takes the fill value")
        if not self.plan.fill_with_mean:
            if self.no_data_replace is not None:
                data[empty] = self.no_data_replace
            return data
        means = np.asarray(self.plan.means[modality], dtype=np.float32) / self.plan.constant_scale.get(modality, 1.0)
        if modality in self.filter_indices:
            # Bands that are not selected are read and dropped; any number will do for them.
            fill = np.zeros(data.shape[0], dtype=np.float32)
            fill[self.filter_indices[modality]] = means
        else:
            fill = np.tile(means, data.shape[0] // len(means))
        return np.where(empty, fill[:, None, None], data)

    def _ignore_empty(self, label: NDArray[Any], value: int) -> NDArray[Any]:
        """Return the label [1, H, W] with a value to ignore where no image has data; images have been read before."""
        images = [] if self.scalar_label else [empty for empty in self._empty if empty.shape == label.shape[-2:]]
        if images:
            label[..., np.logical_and.reduce(images)] = value + bool(self.reduce_zero_label)
        return label

    def _warn_once(self, message: str, key: str | None = None) -> None:
        if (key or message) not in self._warned:
            self._warned.add(key or message)
            logger.warning("%s", message)

    def _check_label(self, path: Any, label: NDArray[Any]) -> NDArray[Any]:
        allowed = self.plan.label_ids
        if allowed is None or self.scalar_label:
            return label
        shift = 1 if self.reduce_zero_label else 0
        wrong = ~np.isin(label, [value + shift for value in allowed])
        if wrong.any():
            values, counts = np.unique(label[wrong], return_counts=True)
            shown = ", ".join(f"{v:g} ({c} pixels)" for v, c in zip(values[:5], counts[:5], strict=True))
            raise DataError(
                f"{path} holds label values {shown}; expected 0 to {len([v for v in allowed if v >= 0]) - 1} or "
                "ignore_index. See num_classes, ignore_index, no_label_replace and reduce_zero_label."
            )
        return label


def _report_left_out(listed: int, kept: int, root: str) -> None:
    """Warn of samples that TerraTorch leaves out without a word."""
    if listed > kept:
        counts = (listed - kept, listed, root)
        logger.warning("%d of %d files in %s are left out: they have no counterpart in the other folders.", *counts)


def _band_names(modality: str) -> tuple[str, ...]:
    """Return the names of all bands of a modality; none for one that is not in the table."""
    entry = find(modality)
    return () if entry is None else entry.band_names


def _label_tensor(image: NDArray[Any]) -> dict[str, Tensor]:
    """Return a label as a tensor, in the form of a transform; TerraTorch leaves it out of transforms by modality."""
    return {"image": torch.from_numpy(image)}


def _check_roots(roots: Mapping[str, str], labels: Any) -> None:
    for name, root in {**roots, **({} if labels is None else {"labels": labels})}.items():
        if not os.path.exists(root):
            raise DataError(f"The folder of {name} does not exist: {root} (seen from {Path.cwd()}).")


class SegmentationSamples(CheckedSamples, GenericMultimodalSegmentationDataset):  # type: ignore[misc]
    """Images and class masks."""


class RegressionSamples(CheckedSamples, GenericMultimodalPixelwiseRegressionDataset):  # type: ignore[misc]
    """Images and continuous masks."""


class ScalarSamples(CheckedSamples, GenericMultimodalScalarDataset):  # type: ignore[misc]
    """Images and one label each."""


class UnlabelledSamples(CheckedSamples, GenericMultimodalDataset):  # type: ignore[misc]
    """Images alone."""


CHECKED: dict[type, type[CheckedSamples]] = {
    GenericMultimodalSegmentationDataset: SegmentationSamples,
    GenericMultimodalPixelwiseRegressionDataset: RegressionSamples,
    GenericMultimodalScalarDataset: ScalarSamples,
    GenericMultimodalDataset: UnlabelledSamples,
}
"""This package's data set for each of TerraTorch's."""
