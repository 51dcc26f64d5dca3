"""Labels of chips: rasters, whose grids the chips get, and vectors, which are rasterised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from terramind_plugin.errors import ConfigError, DataError, one_line, suggest
from terramind_plugin.raster.complete import GDAL_ERRORS, reason_of
from terramind_plugin.raster.paths import RASTERS
from terramind_plugin.raster.writer import write_geotiff
from terramind_plugin.sources.area import read_geojson, read_shape
from terramind_plugin.sources.grids import (
    BLOCK_PIXELS,
    GROUP,
    LARGEST_CHIP,
    SMALLEST_CHIP,
    Place,
    from_degrees,
    outlines,
)

UNLABELLED = -1
"""Value of a pixel without a label."""
FIELDS = ("label", "class", "class_id", "class_name", "category", "value")
"""Properties of a feature that may hold its class, used if --label_field is not given."""


@dataclass(frozen=True)
class Burnable:
    """Labels as vectors."""

    path: Path
    shapes: tuple[Any, ...]
    """Shapely geometries in longitude and latitude."""
    values: tuple[int, ...]
    """Class id of each geometry."""
    class_names: tuple[str, ...]
    """Name of each class id, counted from 0."""
    background: int
    """Value of pixels outside all geometries: 0, or -1 (no label) if 0 is the class of a geometry."""


def label_files(folder: Path) -> list[Path]:
    """Return the rasters in a folder of labels, sorted.

    Raises:
        ConfigError: There is no folder, or no raster in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}. --labels takes a folder of GeoTIFFs or a GeoJSON.")
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in RASTERS and not path.name.startswith(".")
    )
    if not found:
        raise ConfigError(f"{folder} holds no GeoTIFF.")
    return found


def make_label_grid(folder: Path, size: int | None = None) -> list[Place]:
    """Return the chips of label rasters. Each raster is one chip, or is cut into chips of `size` pixels.

    Raises:
        ConfigError: A raster cannot be read, has no position or several bands, or is too large for one chip.
    """
    found: list[Place] = []
    for path in label_files(folder):
        try:
            with rasterio.open(path) as file:
                found += _cut(path, file, size)
        except GDAL_ERRORS as error:
            raise ConfigError(f"{path} cannot be read: {reason_of(error)}.") from error
    if not found:
        raise ConfigError(f"No label of {folder} has {size} x {size} pixels. Give a smaller --size.")
    names = [one.id for one in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{folder} has two labels named {twice}: rename one.")
    return found


def _cut(path: Path, file: Any, size: int | None) -> list[Place]:
    transform = file.transform
    if not file.crs or transform.is_identity:
        raise ConfigError(f"{path} has no position, so no scenes can be found for it. Georeference it first.")
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise ConfigError(f"{path} is rotated or upside down. Warp it first: gdalwarp {path} label.tif")
    if file.count != 1:
        raise ConfigError(f"{path} has {file.count} bands, expected one of class ids or values.")
    height, width = (size, size) if size is not None else file.shape
    if max(height, width) > LARGEST_CHIP or min(height, width) < SMALLEST_CHIP:
        raise ConfigError(
            f"{path} has {file.width} x {file.height} pixels, expected {SMALLEST_CHIP} to {LARGEST_CHIP} per side. "
            "Cut it with --size 256."
        )
    epsg = file.crs.to_epsg()
    crs = f"EPSG:{epsg}" if epsg else file.crs.to_wkt()
    rows, columns = file.height // height, file.width // width
    found = []
    for row in range(rows):
        for column in range(columns):
            left = transform.c + column * width * transform.a
            top = transform.f + row * height * transform.e
            block, group = BLOCK_PIXELS * transform.a, GROUP * max(width * transform.a, height * -transform.e)
            found.append(
                Place(
                    id=path.stem if rows * columns == 1 else f"{path.stem}_{row}_{column}",
                    crs=crs,
                    left=left,
                    top=top,
                    width=width,
                    height=height,
                    pixel_width=transform.a,
                    pixel_height=-transform.e,
                    block=f"{epsg}_{left // block:.0f}_{top // block:.0f}_{transform.a:g}",
                    group=f"{epsg}_{left // group:.0f}_{top // group:.0f}",
                    label=str(path.resolve()),
                    label_row=row * height,
                    label_column=column * width,
                )
            )
    return found


def read_vectors(path: Path, label_field: str | None) -> Burnable:
    """Return the geometries of a GeoJSON with their classes.

    Args:
        path: GeoJSON in longitude and latitude.
        label_field: Property with the class, a number or a name. None uses a property of `FIELDS`; if there is none,
            all geometries are class 1.

    Raises:
        ConfigError: The file is wrong, or a feature has no class.
    """
    features = read_geojson(path)
    shapes = tuple(read_shape(path, feature) for feature in features)
    names = list(dict.fromkeys(key for feature in features for key in feature.get("properties") or {}))
    wanted = label_field or next((name for name in FIELDS if name in names), None)
    if wanted is None:
        return Burnable(path, shapes, (1,) * len(shapes), ("background", "labelled"), 0)
    if wanted not in names:
        raise ConfigError(
            f"{path} has no property '{wanted}'.{suggest(wanted, names)} It has {', '.join(names) or 'none'}."
        )
    given: list[Any] = [(feature.get("properties") or {}).get(wanted) for feature in features]
    missing = next((number for number, value in enumerate(given) if value is None or value == ""), None)
    if missing is not None:
        raise ConfigError(f"{path}: feature {missing + 1} has no '{wanted}'. Give it a class, or remove it.")
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        values = tuple(int(value) for value in given)
        if any(value < 0 or value != float(one) or value > 254 for value, one in zip(values, given, strict=True)):
            raise ConfigError(f"{path}: '{wanted}' must hold whole numbers from 0 to 254, or names.")
        background = UNLABELLED if 0 in values else 0
        return Burnable(path, shapes, values, (), background)
    classes = sorted({str(value) for value in given})
    values = tuple(classes.index(str(value)) for value in given)
    return Burnable(path, shapes, values, tuple(classes), UNLABELLED)


def burn(place: Place, vectors: Burnable, near: Sequence[int]) -> NDArray[np.int16]:
    """Return the label [height, width] of a chip: a pixel belongs to the geometry that contains its centre.

    Args:
        place: Position of the chip.
        vectors: Geometries; where they overlap, the later one is used.
        near: Indices of the geometries that may overlap the chip.
    """
    from shapely import transform

    grid = place.grid
    pairs = [
        (
            transform(
                vectors.shapes[index],
                lambda points: np.column_stack(from_degrees(place.crs, points[:, 0], points[:, 1])),
            ),
            vectors.values[index],
        )
        for index in sorted(near)
    ]
    if not pairs:
        return np.full(grid.shape, vectors.background, np.int16)
    burned: NDArray[np.int16] = rasterize(
        pairs, out_shape=grid.shape, transform=grid.transform, fill=vectors.background, dtype="int16", all_touched=False
    )
    return burned


def find_near(places: Sequence[Place], vectors: Burnable) -> list[list[int]]:
    """Return the indices of the geometries that overlap each chip."""
    from shapely import STRtree

    rows, columns = STRtree(list(vectors.shapes)).query(outlines(places), predicate="intersects")
    found: list[list[int]] = [[] for _ in places]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        found[row].append(column)
    return found


def read_label(place: Place) -> tuple[NDArray[Any], float | None]:
    """Return the label [height, width] of a chip from its raster, and the raster's nodata value.

    Raises:
        DataError: The raster cannot be read.
    """
    try:
        with rasterio.open(place.label) as file:
            window = Window(place.label_column, place.label_row, place.width, place.height)
            return file.read(1, window=window), file.nodata
    except GDAL_ERRORS as error:
        raise DataError(f"{place.label} cannot be read: {one_line(error)}.") from error


def read_class_names(path: str) -> dict[int, str]:
    """Return the names of classes in a raster's tag `class_names`, e.g. '0 = land, 1 = water', by id."""
    with rasterio.open(path) as file:
        pairs = re.findall(r"(-?\d+) = ([^,=]+)", str(file.tags().get("class_names") or ""))
    return {int(number): name.strip() for number, name in pairs}


def classes_of(values: NDArray[Any], nodata: float | None) -> frozenset[int]:
    """Return the class ids in a label; numbers below 0 and nodata are left out."""
    found = np.unique(values[np.isfinite(values)]) if values.dtype.kind == "f" else np.unique(values)
    return frozenset(int(value) for value in found.tolist() if value >= 0 and value != nodata)


def write_label(path: Path, place: Place, values: NDArray[Any], ids: Mapping[int, int]) -> None:
    """Write the label of a chip as int16 with consecutive class ids; -1 for all other values.

    Raises:
        DataError: The file cannot be written.
    """
    found = np.full(values.shape, UNLABELLED, np.int16)
    for value, number in ids.items():
        found[values == value] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = place.grid
    write_geotiff(path, found[None], crs=grid.crs, transform=grid.transform, descriptions=["label"], units=["class id"])
