"""TerraTorch's multi-modal data sets, with errors that name the file and with explicit missing data."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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

from terramind_plugin.data.dates import has_data, join_dates, repeat_single, spread_names
from terramind_plugin.data.file_reader import FileReader, Raw
from terramind_plugin.data.loading import Pick
from terramind_plugin.data.placing import Placing, list_costly
from terramind_plugin.data.reading import ReadingPlan
from terramind_plugin.data.slots import BatchMemory, Slots
from terramind_plugin.errors import DataError
from terramind_plugin.raster.georeference import find_centre
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.layout import LABEL, Layout, read_split
from terramind_plugin.samples.tables import LabelTable
from terramind_plugin.system.files import TABLES

logger = logging.getLogger("terramind_plugin")


class CheckedSamples(FileReader):
    """Mix-in for a TerraTorch data set: checks samples, fills gaps and adds a mask of missing modalities.

    Args:
        data_root: Folder or table by modality.
        plan: How to read the files.
        split: Split file.
        kwargs: Arguments of the TerraTorch data set.

    Raises:
        DataError: A folder or file is missing, or differs from the configuration.
    """

    label_type: torch.dtype | None = None
    """Type of labels with a value for each pixel; None for other labels."""

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
        self._orders: dict[Any, list[int]] = {}
        self._empty: list[NDArray[np.bool_]] = []
        roots = {name: str(root) for name, root in data_root.items()}
        labels = kwargs.get("label_data_root")
        _check_roots(roots, labels)
        self.expected = list(kwargs.get("image_modalities") or roots)
        kwargs["image_modalities"] = [name for name in self.expected if name in roots]
        if plan.temporal:
            # Dates are separated in this class: TerraTorch's code needs selected bands and mixes up the axes.
            kwargs |= {"expand_temporal_dimension": False, "concat_bands": False}
        layout = Layout(
            {**roots, **({} if labels is None else {LABEL: labels})},
            {**(kwargs.get("image_grep") or dict.fromkeys(roots, "*")), LABEL: kwargs.get("label_grep") or "*"},
            prefix=kwargs.get("prefix"),
            substrings=kwargs.get("allow_substring_file_names", True),
            optional=list(roots) if self.allow_missing else (),
        )
        self._list_samples(roots, split, layout, kwargs)
        self._mend_transform(labelled=labels is not None)
        first = self.modalities[0]
        if split is None and not self.allow_missing and first in layout.folders:
            _report_left_out(len(layout.found()), len(self.samples), roots[first])
        self._selection = {}
        if plan.temporal:
            self._selection = {name: self._select(name) for name in self.image_modalities}
            self.filter_indices = {}
        self._choose_way(kwargs)

    def _list_samples(
        self, roots: dict[str, str], split: str | os.PathLike[str] | None, layout: Layout, kwargs: dict[str, Any]
    ) -> None:
        """List the samples with TerraTorch, after checking the files and the table of labels."""
        labels = kwargs.get("label_data_root")
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
                # TerraTorch would regard a blank line as a sample, so it gets the list without blank lines.
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

    def _choose_way(self, kwargs: Mapping[str, Any]) -> None:
        """Decide whether files are read straight into batches, or pass through Albumentations with a copy per step."""
        self._placing: Placing | None = None
        pipeline = getattr(self.transform, "transforms", None)
        shared = bool(getattr(self.transform, "shared", True))
        costly = list_costly(pipeline) if pipeline is not None and shared else ["transforms for single modalities"]
        plain = kwargs.get("channel_position", -3) == -3 and not kwargs.get("data_with_sample_dim")
        self._straight = plain and (pipeline is None or not costly)
        if pipeline is not None and self._straight:
            self._placing = Placing(pipeline)
        elif pipeline is not None and plain:
            logger.warning(
                "Samples are loaded the slower way because of %s: pixels pass through Albumentations. A pipeline of "
                "only D4, flips, Transpose, RandomRotate90 and crops without padding, with ToTensorV2 at the end, "
                "costs almost nothing.",
                ", ".join(dict.fromkeys(costly)),
            )

    def _mend_transform(self, *, labelled: bool) -> None:
        """Make transforms skip labels on which TerraTorch's would fail."""
        by_modality = getattr(self.transform, "transforms", None)
        if isinstance(by_modality, dict):
            by_modality.setdefault("mask", _label_tensor)
        if not labelled and hasattr(self.transform, "non_image_modalities"):
            others = self.transform.non_image_modalities
            self.transform.non_image_modalities = [name for name in others if name != "label"]

    def _read_table(self, labels: Any) -> LabelTable | None:
        """Return the table of labels, or None if labels are files."""
        is_table = isinstance(self, GenericMultimodalScalarDataset) and labels is not None and os.path.isfile(labels)
        return LabelTable(labels, self.plan.table) if is_table else None

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Return one sample: 'image' by modality, 'mask' or 'label', 'filename', and 'modality_mask' if configured.

        Images are float32 [bands, H, W], or [bands, dates, H, W]. A modality that the sample lacks is NaN and False in
        'modality_mask'; its 'filename' is that of another file of the sample. A series is NaN at the dates that it
        lacks.
        """
        return self._sample(index, BatchMemory(Slots(), 1), 0)

    def __getitems__(self, indices: Sequence[Any]) -> list[dict[str, Any]]:
        """Return samples as `__getitem__` does; where possible, their images already lie in memory as one batch."""
        batch = BatchMemory(self.plan.slots, len(indices))
        return [self._sample(index, batch, position) for position, index in enumerate(indices)]

    def _sample(self, index: Any, batch: BatchMemory, position: int) -> dict[str, Any]:
        self._seed_transforms()
        self._empty = []
        pick = self._with_label(index) if isinstance(index, tuple) else index
        sample = self._read_straight(pick, batch, position) if self._straight else None
        if sample is None:
            self._empty = []
            sample = super().__getitem__(pick)
        return self._complete_sample(sample)

    def _read_straight(self, pick: Any, batch: BatchMemory, position: int) -> dict[str, Any] | None:
        """Return a sample read straight into its place in the batch, or None if that is impossible.

        Args:
            pick: Number of the sample, or that number and the names of the files to read.
            batch: Memory of the batch.
            position: Number of the sample in the batch.
        """
        number, names = pick if isinstance(pick, tuple) else (pick, list(self.samples[pick]))
        files = self.samples[number]
        images = [name for name in names if name in self.image_modalities or (name == "mask" and not self.scalar_label)]
        if not all(is_raster(files[name]) for name in images):
            return None
        found: dict[str, Any] = {}
        with ExitStack() as stack:
            opened = self._open_all(stack, files, images)
            place = None
            if self._placing is not None:
                sizes = {image.shape[1:] for image in opened.values()}
                if len(sizes) != 1:
                    return None  # Albumentations crops each one separately
                place = self._placing.draw(*sizes.pop())
            for name in names:
                if name not in opened:
                    found[name] = self._load_other(files[name], name)
                elif name == "mask":
                    found[name] = self._read_label(files[name], opened[name], place)
                else:
                    found[name] = self._read_image(files[name], name, opened[name], place)
            for name, raw in found.items():
                if name in opened:
                    found[name] = self._write(name, raw, batch, position)
        sample = {"mask": found.pop("mask")} if "mask" in opened else {}
        if "mask" in found:
            sample["label"] = found.pop("mask")
        if self.concat_bands:
            sample["image"] = torch.cat([found[name] for name in self.image_modalities if name in found])
        else:
            sample["image"] = {name: found[name] for name in self.modalities if name in found}
        return {**sample, "filename": files}

    def _write(self, name: str, raw: Raw, batch: BatchMemory, position: int) -> Tensor:
        """Return the pixels of a file as a tensor: in the batch or, if they will be changed further, on its own."""
        is_label = name == "mask"
        shape = raw.shape[1:] if is_label else raw.shape
        dtype = self.label_type or torch.float32 if is_label else torch.float32
        alone = not is_label and (self.concat_bands or self.plan.temporal)
        out = torch.empty(*shape, dtype=dtype) if alone else batch.take(name, position, shape, dtype)
        raw.write(out[None] if is_label else out)
        return out

    def _load_other(self, file: Any, name: str) -> Any:
        """Return an input that is not an image, or a label of a whole image, as TerraTorch does."""
        data = self._load_file(file, self.no_label_replace if name == "mask" else self.no_data_replace, name)
        if name in self.constant_scale:
            data = data.astype(np.float32) * self.constant_scale[name]
        if data.dtype == np.float64:
            data = data.astype(np.float32)
        if name == "mask":
            name, data = "label", data - 1 if self.reduce_zero_label else data
        if self._placing is None:
            return self.transform({name: data})[name]
        return self.transform.non_image_transform(data) if name in self.transform.non_image_modalities else data

    def _complete_sample(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Add what TerraTorch's samples lack: separate dates, missing modalities, positions."""
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
        """Add the longitude and latitude of a sample's middle, float32 [2] in degrees, from its georeferenced files.

        Raises:
            DataError: No file has a georeference, and positions may not be missing.
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
        """Return the position of a file's middle, which is read once, or None if the file has no georeference."""
        if path not in self._places:
            self._places[path] = find_centre(path)
        return self._places[path]

    def _with_label(self, pick: Pick) -> Pick:
        """Return the number of a sample, with its label and the drawn modalities that it has."""
        number, drawn = pick
        files = self.samples[number]
        names = [name for name in spread_names(drawn, self.plan.counts) if name in files]
        names = names or [name for name in self.image_modalities if name in files]
        return number, [*names, *(["mask"] if "mask" in files else [])]

    def _seed_transforms(self) -> None:
        """Seed augmentation from seed_everything, differently for each worker process and epoch.

        Albumentations has its own random generator, and each worker process has a copy of it.
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


def _report_left_out(listed: int, kept: int, root: str) -> None:
    """Warn of samples that TerraTorch leaves out without a message."""
    if listed > kept:
        counts = (listed - kept, listed, root)
        logger.warning("%d of %d files in %s are left out: they have no counterpart in the other folders.", *counts)


def _label_tensor(image: NDArray[Any]) -> dict[str, Tensor]:
    """Return a label as a tensor, like a transform does; TerraTorch's transforms by modality skip labels."""
    return {"image": torch.from_numpy(image)}


def _check_roots(roots: Mapping[str, str], labels: Any) -> None:
    for name, root in {**roots, **({} if labels is None else {"labels": labels})}.items():
        if not os.path.exists(root):
            raise DataError(f"The folder of {name} does not exist: {root} (seen from {Path.cwd()}).")


class SegmentationSamples(CheckedSamples, GenericMultimodalSegmentationDataset):  # type: ignore[misc]
    """Samples with images and class masks."""

    label_type = torch.long


class RegressionSamples(CheckedSamples, GenericMultimodalPixelwiseRegressionDataset):  # type: ignore[misc]
    """Samples with images and continuous masks."""

    label_type = torch.float32


class ScalarSamples(CheckedSamples, GenericMultimodalScalarDataset):  # type: ignore[misc]
    """Samples with images and one label each."""


class UnlabelledSamples(CheckedSamples, GenericMultimodalDataset):  # type: ignore[misc]
    """Images alone."""


CHECKED: dict[type, type[CheckedSamples]] = {
    GenericMultimodalSegmentationDataset: SegmentationSamples,
    GenericMultimodalPixelwiseRegressionDataset: RegressionSamples,
    GenericMultimodalScalarDataset: ScalarSamples,
    GenericMultimodalDataset: UnlabelledSamples,
}
"""This package's data set in place of each data set of TerraTorch."""
