"""Summaries of the files of a random sample of the data set, of limited size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from terramind_plugin.errors import DataError, one_line
from terramind_plugin.raster.bands import check_dated_names, find_bands
from terramind_plugin.raster.complete import check_checksums
from terramind_plugin.raster.missing import Pixels, is_odd, read_pixels
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.checks.headers import UNREADABLE, map_files
from terramind_plugin.samples.dates import modality_of
from terramind_plugin.samples.layout import LABEL
from terramind_plugin.samples.plan import DataPlan, ImagePlan

WHOLE = 64 * 2**20
"""Maximum size in bytes of a file that is read as a whole, with its checksums."""
LARGEST = 1024
"""Maximum height and width in pixels that is read of a file, from its middle."""
MOST_BANDS = 1024
"""Maximum number of dates times bands; a file with more counts as damaged."""
PIXELS = 2048
"""Maximum number of pixels of a file that are kept in memory."""


@dataclass(frozen=True)
class Summary:
    """Values of one image."""

    path: Path
    low: NDArray[Any]
    """First percentile of each band of the file, in the units that the model reads; NaN for a band without data."""
    median: NDArray[Any]
    levels: NDArray[Any]
    """Median of each band of each date, in the order of the file and in the units that the model reads."""
    constant: NDArray[Any]
    """True for each band that holds one value only."""
    pixels: NDArray[Any]
    """Values [bands, n] of pixels in which all bands have data; n may be 0."""
    missing: float
    """Share of pixels in which some band is NaN or nodata."""
    zero: float
    """Share of pixels in which all bands are 0 and that are not declared as nodata."""
    undeclared: int = 0
    """Number of undeclared missing pixels: NaN, infinite or far from 0."""
    far: int = 0
    """Number of undeclared missing pixels that are infinite or far from 0."""
    number: float | None = None
    """Example of an infinite value or of one far from 0."""
    tagged: bool = False
    """True if the file has a nodata value."""
    harmonised: bool = False
    """True if a tag says that the offset of newer Sentinel-2 products was removed or never added."""


@dataclass
class Sample:
    """Summaries of a random sample of the data set."""

    images: dict[str, list[Summary]] = field(default_factory=dict)
    """Summaries of the images by modality."""
    problems: list[tuple[Path, str]] = field(default_factory=list)
    """Files that cannot be read, with the reasons."""
    of: int = 0
    """Number of samples in the data set."""
    read: int = 0


def _with_images(plan: DataPlan) -> list[tuple[str, str, dict[str, Path]]]:
    names = {image.name for image in plan.images}
    return [chip for chip in plan.chips() if names & chip[2].keys()]


def draw_samples(plan: DataPlan, count: int) -> list[tuple[str, str, dict[str, Path]]]:
    """Return split, id and files of at most `count` chips that have an image, drawn from all splits."""
    every = _with_images(plan)
    order = np.random.default_rng(0).permutation(len(every))[:count]
    return [every[index] for index in sorted(order)]


def read_sample(plan: DataPlan, count: int) -> Sample:
    """Return summaries of the images of at most `count` samples, drawn from all splits."""
    drawn = draw_samples(plan, count)
    jobs = [
        (image, files[image.name])
        for _, _, files in drawn
        for image in plan.images
        if image.name in files and image.name != LABEL and is_raster(files[image.name])
    ]
    result = Sample(of=len(_with_images(plan)), read=len(drawn))
    for (image, path), got in zip(jobs, map_files(_summary, jobs), strict=True):
        if isinstance(got, str):
            result.problems.append((path, got))
        else:
            result.images.setdefault(image.name, []).append(got)
    return result


def read_middle(raster: rasterio.DatasetReader, bands: list[int] | None = None, largest: int = LARGEST) -> Pixels:
    """Return the pixels [bands, H, W] of a raster, or of its middle if it is large, with their missing values.

    Args:
        raster: An open file.
        bands: Numbers of the bands, counted from 1; None for all.
        largest: Maximum number of pixels per side.
    """
    height, width = min(raster.height, largest), min(raster.width, largest)
    window = Window((raster.width - width) // 2, (raster.height - height) // 2, width, height)
    return read_pixels(raster, bands, window=window)


def order_of(image: ImagePlan, path: Path, names: Sequence[str | None]) -> list[int] | None:
    """Return the positions of the bands to read, found by their names in the file; None for all in the file's order.

    Args:
        image: Configured properties of the modality.
        path: Path of the file, for the message.
        names: Descriptions of the file's bands.

    Raises:
        DataError: The file's names of bands differ from the configuration.
    """
    count = len(image.file_bands)
    if not any(names) or not count:
        return None
    if image.dates:
        check_dated_names(path, image.name, names, image.file_bands, by_band=image.by_band)
        return None
    stored = image.file_bands if image.binding else ()
    return find_bands(path, image.name, names, image.file_bands, stored, binding=image.binding)


def _summary(job: tuple[ImagePlan, Path]) -> Summary | str:
    image, path = job
    try:
        with rasterio.open(raster_name(path, modality_of(image.name), image.file_bands)) as raster:
            if raster.count > MOST_BANDS:
                return f"it has {raster.count} bands"
            if any(name.startswith("complex") for name in raster.dtypes):
                return "it holds complex numbers"
            pixels = read_middle(raster)
            if path.stat().st_size <= WHOLE:
                check_checksums(path, raster)
            nodata = any(value is not None for value in raster.nodatavals)
            harmonised = "offset_removed" in raster.tags()
            try:
                order = order_of(image, path, raster.descriptions)
            except DataError:
                order = None  # reported by check_headers
    except (*UNREADABLE, DataError) as error:
        return one_line(error)
    # Damaged files may hold numbers beyond the range of float32.
    with np.errstate(invalid="ignore", over="ignore"):
        return replace(_summarise(image, path, pixels, order, nodata), harmonised=harmonised)


def _summarise(image: ImagePlan, path: Path, pixels: Pixels, order: list[int] | None, tagged: bool) -> Summary:
    stored = pixels.values
    known = np.ones(stored.shape, bool) if pixels.missing is None else ~pixels.missing
    far = 0
    number: float | None = None
    if pixels.undeclared and (odd := is_odd(stored) & ~np.isnan(stored)).any():
        far = int(odd.any(axis=0).sum())
        number = float(stored[odd][0])
    data = stored.astype(np.float32)
    if order is not None:
        data, known = data[order], known[order]
    count = len(image.file_bands)
    bands = count if image.dates and count and not len(data) % count else len(data)
    data = (data + np.float32(image.offset or 0.0)) * np.float32(image.scale)
    known &= np.isfinite(data)
    levels = [np.median(plane[mask]) if mask.any() else np.nan for plane, mask in zip(data, known, strict=True)]
    zeros = (stored if order is None else stored[order]) == 0
    data, known, zeros = (_by_band(array, bands, image.by_band) for array in (data, known, zeros))
    zero = float((zeros & known).all(axis=0).mean())
    full = known.all(axis=0)
    seen = [row[mask] for row, mask in zip(data, known, strict=True)]
    kept = np.flatnonzero(full)
    kept = kept[:: max(1, len(kept) // PIXELS)]
    return Summary(
        path=path,
        low=np.array([np.percentile(row, 1) if row.size else np.nan for row in seen]),
        median=np.array([np.median(row) if row.size else np.nan for row in seen], dtype=np.float64),
        constant=np.array([bool(row.size) and bool(row.min() == row.max()) for row in seen]),
        levels=np.array(levels, dtype=np.float64),
        pixels=data[:, kept].astype(np.float64),
        missing=float(1 - full.mean()),
        zero=zero,
        undeclared=pixels.undeclared,
        far=far,
        number=number,
        tagged=tagged,
    )


def _by_band(values: NDArray[Any], bands: int, together: bool) -> NDArray[Any]:
    """Return [bands, n] from [dates * bands, H, W], or from [bands * dates, H, W] if dates of a band are together."""
    if together:
        return values.reshape(bands, -1)
    return values.reshape(-1, bands, *values.shape[1:]).swapaxes(0, 1).reshape(bands, -1)


def _read_bands(image: ImagePlan, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the bands that the model reads."""
    return pixels[list(image.read)] if image.read and max(image.read) < len(pixels) else pixels


def pooled(image: ImagePlan, summaries: Sequence[Summary]) -> NDArray[Any]:
    """Return the pixels [bands, n] of all files (at least one), with the bands that the model reads."""
    bands = min(len(summary.pixels) for summary in summaries)
    return np.concatenate([_read_bands(image, summary.pixels)[:bands] for summary in summaries], axis=1)
