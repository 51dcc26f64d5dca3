"""Reading of a data set's files, whole or in part: bands by name, gaps filled, labels checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from terratorch.datasets import GenericMultimodalDataset
from torch import Tensor

from terramind_plugin.data.dates import by_date
from terramind_plugin.data.placing import Placement
from terramind_plugin.data.reading import FAR_VALUES, ReadingPlan, by_name, without_odd
from terramind_plugin.data.slots import scratch
from terramind_plugin.data.terratorch_internals import generate_bands_intervals
from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import band_text, find
from terramind_plugin.raster.bands import check_one_band
from terramind_plugin.raster.chips import Image, mark_gaps
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.images import OpenImage, open_image
from terramind_plugin.raster.missing import FAR, Pixels
from terramind_plugin.raster.netcdf import is_netcdf, raster_name
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.dates import modality_of

logger = logging.getLogger("terramind_plugin")

EXACT = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
"""Types whose numbers give the same float32 whether they are converted directly or through other types."""
EXACT_LABELS = ("uint8", "int8", "uint16", "int16")
"""Types whose numbers float32 represents exactly."""
MANY_LABELS = 1000
"""Number of ids in a label from which the pixels are compared one by one."""


@dataclass(frozen=True)
class Raw:
    """Pixels of a file, ready to be written into a batch."""

    values: NDArray[Any]
    """Values in the type of the file, or float32 if they had to be changed. Their memory may be reused later."""
    place: Placement | None
    """Order of the pixels in the batch; None if it is that of the file."""
    added: float = 0.0
    """Number added to the values, in the type of the batch."""
    scale: float | None = None
    """Factor applied after the addition; None for none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape [bands, h, w] in the batch."""
        return len(self.values), *(self.values.shape[1:] if self.place is None else self.place.shape)

    def write(self, out: Tensor) -> None:
        """Write the values into a tensor of shape `shape`."""
        array = out.numpy()
        if self.place is None:
            np.copyto(array, self.values, casting="unsafe")
        else:
            self.place.write(self.values, array)
        if self.added:
            array += array.dtype.type(self.added)
        if self.scale is not None:
            array *= self.scale


class FileReader(GenericMultimodalDataset):  # type: ignore[misc]
    """The part of a data set that reads its files."""

    plan: ReadingPlan
    allow_missing: bool
    filter_indices: dict[str, list[int]]
    _selection: dict[str, tuple[int, list[int]]]
    _warned: set[str]
    _empty: list[NDArray[np.bool_]]
    _orders: dict[Any, list[int]]

    def _open_all(self, stack: ExitStack, files: Mapping[str, Any], names: Sequence[str]) -> dict[str, OpenImage]:
        """Return the open rasters of some files of a sample, which the stack closes."""
        opened = {}
        for name in names:
            with _reading(files[name], name):
                opened[name] = stack.enter_context(self._open(files[name], name))
        return opened

    @contextmanager
    def _open(self, path: Any, modality: str) -> Iterator[OpenImage]:
        """Yield the raster of a file, from the cache if there is one."""
        entry = self.plan.sources.get(modality_of(modality), modality_of(modality))
        bands = (self.dataset_bands or {}).get(modality) or _band_names(entry)
        name = partial(raster_name, path, entry if modality in self.image_modalities else "", bands)
        if self.plan.cache is None:
            with open_image(name()) as image:
                yield image
            return
        settings = [entry, list(map(band_text, bands))] if is_netcdf(path) else None
        found, key = self.plan.cache.get(path, settings)
        yield self.plan.cache.decode(name(), path, key) if found is None else found

    def _load_file(self, path: Any, nan_replace: float | None = None, modality: str | None = None) -> NDArray[Any]:
        """Return the whole content of a file or of a row of a table, as transforms expect it."""
        name = str(modality)
        names: Sequence[str | None] = ()
        with _reading(path, name):
            if is_raster(path):
                with self._open(path, name) as image:
                    pixels = image.read(declared=name != "mask" or not self._is_a_class(path, image.nodata))
                    data, names = self._mark(path, name, pixels, image)[:2]
            else:
                data = without_odd(path, super()._load_file(path, None, modality))
        if name not in self.image_modalities and nan_replace is not None:
            data = np.nan_to_num(data, nan=nan_replace)
        if name == "mask":
            if not self.scalar_label and data.ndim == 3:
                check_one_band(path, len(data))
            # Signed: TerraTorch subtracts 1 for reduce_zero_label, and 0 - 1 would overflow in an unsigned type.
            label = self._check_label(path, data if self.scalar_label else data.astype(np.float32))
            return label if self.plan.empty_label is None else self._ignore_empty(label, self.plan.empty_label)
        return self._complete(path, data, names, name) if name in self.image_modalities else data

    def _complete(self, path: Any, data: NDArray[Any], names: Sequence[str | None], modality: str) -> NDArray[Any]:
        """Return an image as float32 with its offset, its bands in order, and its gaps filled."""
        data = data.astype(np.float32) + np.float32(self.plan.offsets.get(modality, 0.0))
        if data.ndim != 3:
            return data
        data = self._select_bands(path, self._by_name(path, data, names, modality), modality)
        return self._fill(path, data, modality)

    def _read_image(self, path: Any, modality: str, image: OpenImage, place: Placement | None) -> Raw:
        """Return the pixels that a placement selects; None selects all pixels in the file's order."""
        window = None if place is None else place.window
        with _reading(path, modality):
            pixels = image.read(window, buffer=partial(scratch, modality))
            # Whether an image has no data at all can only be seen from the whole image.
            lost = pixels.missing is not None and bool(pixels.missing.all(axis=(1, 2)).any())
            if lost and window is not None:
                pixels = image.read()
        added = self.plan.offsets.get(modality, 0.0)
        if pixels.missing is None and pixels.values.dtype.name in EXACT:
            values = self._by_name(path, pixels.values, image.descriptions, modality)
            values = self._select_bands(path, values, modality)
            if self.plan.empty_label is not None:
                self._empty.append(np.zeros(values.shape[1:], bool))
        else:
            found = self._mark(path, modality, pixels, image)
            values, added = self._complete(path, found.values, found.descriptions, modality), 0.0
            if lost and window is not None:
                values = values[:, *window]
                self._empty = [*self._empty[:-1], *(empty[window] for empty in self._empty[-1:])]
        if modality in self.filter_indices:
            values = values[self.filter_indices[modality]]
        return Raw(values, place, added, self.constant_scale.get(modality))

    def _read_label(self, path: Any, image: OpenImage, place: Placement | None) -> Raw:
        """Return the pixels [1, h, w] of a label that a placement selects, after checking the whole label."""
        with _reading(path, "mask"):
            pixels = image.read(declared=not self._is_a_class(path, image.nodata), buffer=partial(scratch, "mask"))
        check_one_band(path, len(pixels.values))
        label = pixels.values
        if pixels.missing is not None or label.dtype.name not in EXACT_LABELS:
            label = self._mark(path, "mask", pixels, image).values
            if self.no_label_replace is not None:
                label = np.nan_to_num(label, nan=self.no_label_replace)
            label = label.astype(np.float32)
        label = self._check_label(path, label)
        if place is not None:
            label = label[:, *place.window]
        if self.plan.empty_label is not None:
            label = self._ignore_empty(label.astype(np.float32), self.plan.empty_label)
        return Raw(label, place, -1.0 if self.reduce_zero_label else 0.0)

    def _mark(self, path: Any, modality: str, pixels: Pixels, image: OpenImage) -> Image:
        """Return pixels with NaN for gaps, and warn of values that are far from 0."""
        found = mark_gaps(pixels, image.descriptions)
        if found.far:
            self._warn_once(FAR_VALUES % (path, FAR, modality), key=f"far {modality}")
        return found

    def _by_name(self, path: Any, data: NDArray[Any], names: Sequence[str | None], modality: str) -> NDArray[Any]:
        """Return an image with its bands in the order of the configuration."""
        if not any(names):
            return data
        key = (modality, tuple(names))
        if key not in self._orders:
            self._orders[key] = by_name(
                path,
                np.arange(len(data)),
                names,
                self.plan.sources.get(modality_of(modality), modality),
                (self.dataset_bands or {}).get(modality),
                len(self.plan.means.get(modality, ())),
                dates=self.plan.temporal,
                by_band=modality in self.plan.by_band,
            ).tolist()
        order = self._orders[key]
        return data if order == list(range(len(data))) else data[order]

    def _is_a_class(self, path: Any, nodata: float | None) -> bool:
        """Return whether a label file's nodata value is a class id, so that masking it would remove the class."""
        classes = self.plan.num_classes
        if classes is None or self.scalar_label or nodata is None:
            return False
        first = 0 if not self.reduce_zero_label else -1
        if not first <= nodata - self.reduce_zero_label < classes:
            return False
        if not self.reduce_zero_label:
            self._warn_once(f"{path}: its nodata value {nodata:g} is also the id of a class, and counts as that class")
        return True

    def _select_bands(self, path: Any, data: NDArray[Any], modality: str) -> NDArray[Any]:
        """Return the bands to read, [bands, H, W] or, with dates, [dates * bands, H, W]."""
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
                f"dataset_bands: {{{modality}: [...]}} and the model's bands in output_bands, and give means and stds "
                "one number per band."
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
        """Return the image without NaN. Images or dates that are all NaN stay so if modalities may be missing."""
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
            self._warn_once(f"{path}: no pixel{which} of {modality} has data; the fill value is used")
        if not self.plan.fill_with_mean:
            if self.no_data_replace is not None:
                data[empty] = self.no_data_replace
            return data
        means = np.asarray(self.plan.means[modality], dtype=np.float32) / self.plan.constant_scale.get(modality, 1.0)
        if modality in self.filter_indices:
            # Bands that are not selected are dropped later, so any number will do for them.
            fill = np.zeros(data.shape[0], dtype=np.float32)
            fill[self.filter_indices[modality]] = means
        else:
            fill = np.tile(means, data.shape[0] // len(means))
        return np.where(empty, fill[:, None, None], data)

    def _ignore_empty(self, label: NDArray[Any], value: int) -> NDArray[Any]:
        """Return the label [1, H, W] with the ignored value where no image has data. Images must be read before."""
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
        low, high = (label.min(), label.max()) if label.size and label.dtype.kind in "iu" else (0, MANY_LABELS)
        if int(high) - int(low) < MANY_LABELS and {v - shift for v in range(int(low), int(high) + 1)} <= {*allowed}:
            return label
        wrong = ~np.isin(label, [value + shift for value in allowed])
        if wrong.any():
            values, counts = np.unique(label[wrong], return_counts=True)
            shown = ", ".join(f"{v:g} ({c} pixels)" for v, c in zip(values[:5], counts[:5], strict=True))
            raise DataError(
                f"{path} holds label values {shown}; expected 0 to {len([v for v in allowed if v >= 0]) - 1} or "
                "ignore_index. See num_classes, ignore_index, no_label_replace and reduce_zero_label."
            )
        return label


@contextmanager
def _reading(path: Any, modality: str) -> Iterator[None]:
    """Turn errors of reading into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except (*GDAL_ERRORS, ValueError) as error:
        raise DataError(f"{path} cannot be read as {modality}: {error}") from error


def _band_names(modality: str) -> tuple[str, ...]:
    """Return the names of all bands of a modality; none for one that is not in the table."""
    entry = find(modality)
    return () if entry is None else entry.band_names
