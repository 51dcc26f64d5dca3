"""Writing vectors to Zarr and GeoParquet, completely or not at all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.inference.vectors import NO_VECTOR, Precision, chunks, tile_side
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.system.files import completing, completing_folder, flush_to_disk

NAME = "embedding"
"""Name of the vectors in a Zarr store."""
GEOPARQUET = "1.1.0"
"""Version of GeoParquet that is written."""
EXTRA = "pip install 'terramind-plugin[embeddings]'"


@dataclass(frozen=True)
class Vectors:
    """Vectors of one scene on their grid."""

    names: tuple[str, ...]
    """Names of the dimensions."""
    grid: Grid
    precision: Precision
    read: Callable[[int, int], NDArray[Any]]
    """Function of two row numbers: the rows from the first number to before the second, [dimensions, rows, columns]."""

    @property
    def row_bytes(self) -> int:
        """Return the size of a row in bytes."""
        return self.grid.width * len(self.names) * np.dtype(self.precision.dtype).itemsize


def need(name: str, format: str) -> None:
    """Raise a ConfigError if a package that a format needs is missing."""
    import importlib.util

    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--format {format} needs the package {name}, which is not installed: {EXTRA}")


@contextmanager
def _saying(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {one_line(error.strerror or error)}. Is the disk full? Make room in "
            f"{path.parent} and run the same command again: finished parts are kept."
        ) from error


def write_zarr(path: Path, vectors: Vectors, tags: Mapping[str, str]) -> None:
    """Write a Zarr store (version 3) that xarray opens, with CRS and coordinates by the CF conventions.

    Args:
        path: Folder to write; an existing one is replaced.
        vectors: Content of the variable 'embedding' [dimension, y, x]; int8 also gets 'scale' [dimension].
        tags: Further attributes.

    Raises:
        DataError: It cannot be written.
    """
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    grid, precision = vectors.grid, vectors.precision
    count, dtype = len(vectors.names), np.dtype(precision.dtype)
    side = tile_side(grid.shape, count * dtype.itemsize)
    checked: dict[str, Any] = {
        "compressors": [ZstdCodec(level=3), Crc32cCodec()],
        "config": {"write_empty_chunks": True},
    }
    with _saying(path), completing_folder(path) as folder:
        root = zarr.create_group(folder, zarr_format=3, attributes={"Conventions": "CF-1.11", **tags})

        def add(name: str, values: NDArray[Any], dimensions: tuple[str, ...], **attributes: Any) -> None:
            array = root.create_array(
                name, shape=values.shape, dtype=values.dtype, chunks=values.shape or "auto",
                dimension_names=dimensions, attributes=attributes, fill_value=0, **checked,
            )  # fmt: skip
            array[...] = values

        coordinates = _add_positions(add, grid)
        array = root.create_array(
            NAME, shape=(count, *grid.shape), dtype=dtype, chunks=(count, side, side), fill_value=precision.nodata,
            dimension_names=("dimension", "y", "x"), **checked,
            attributes={
                "coordinates": " ".join(coordinates), "grid_mapping": "spatial_ref",
                **({"_FillValue": NO_VECTOR, "comment": "true value = embedding * scale"} if precision.scales else {}),
            },
        )  # fmt: skip
        if precision.scales:
            add("scale", np.array(precision.scales, np.float32), ("dimension",))
        parts = chunks(grid.height, vectors.row_bytes, side)
        for first, last in parts:
            array[:, first:last] = vectors.read(first, last)
        with warnings.catch_warnings(action="ignore"):  # not part of Zarr's version 3, but xarray looks for it
            zarr.consolidate_metadata(root.store)
        for file in folder.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    flush_to_disk(opened.fileno())
        written: Any = zarr.open_group(folder, mode="r")[NAME]
        for first, last in parts:
            if not np.array_equal(written[:, first:last], vectors.read(first, last), equal_nan=dtype.kind == "f"):
                raise OSError(f"rows {first} to {last - 1} differ from the values written")


def _add_positions(add: Callable[..., None], grid: Grid) -> list[str]:
    """Add the CRS and the middles of cells, and return the names of coordinates that are not dimensions."""
    import pyproj

    numbers = grid.transform[:6]
    a, b, c, d, e, f = numbers
    crs: dict[str, Any] = {"GeoTransform": " ".join(f"{number!r}" for number in (c, a, b, f, d, e))}
    names: list[dict[str, Any]] = [{"standard_name": f"projection_{axis}_coordinate"} for axis in "xy"]
    if grid.crs:
        projection = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        crs |= {**projection.to_cf(), "spatial_ref": grid.crs.to_wkt(), "crs_wkt": grid.crs.to_wkt()}
        axes = {axis.get("axis"): axis for axis in projection.cs_to_cf()}
        names = [axes.get("X") or names[0], axes.get("Y") or names[1]]
    add("spatial_ref", np.array(0), (), **json.loads(json.dumps(crs, default=float)))
    columns, rows = np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5
    if b == d == 0:
        add("x", apply_affine(grid.transform, columns, 0)[0], ("x",), **names[0])
        add("y", apply_affine(grid.transform, 0, rows)[1], ("y",), **names[1])
        return ["spatial_ref"]
    x, y = apply_affine(grid.transform, columns[None], rows[:, None])
    add("xc", x, ("y", "x"), **{key: value for key, value in names[0].items() if key != "axis"})
    add("yc", y, ("y", "x"), **{key: value for key, value in names[1].items() if key != "axis"})
    return ["spatial_ref", "xc", "yc"]


def read_zarr_tag(path: Path, name: str) -> str | None:
    """Return an attribute of a Zarr store.

    Raises:
        OSError: It is not a Zarr store; a ValueError means the same.
    """
    import zarr

    value = zarr.open_group(path, mode="r").attrs.get(name)
    return value if isinstance(value, str) else None


def check_zarr(path: Path) -> None:
    """Read a Zarr store to its end.

    Raises:
        OSError: A chunk is missing or damaged; a ValueError means the same.
    """
    import zarr

    root = zarr.open_group(path, mode="r")
    for name, array in root.arrays():
        if array.nchunks_initialized != array.nchunks:
            raise OSError(f"{name} has {array.nchunks_initialized} of {array.nchunks} chunks")
        if array.ndim != 3:
            array[...]
            continue
        for first in range(0, array.shape[1], array.chunks[1]):
            array[:, first : first + array.chunks[1]]


def write_parquet(
    path: Path,
    vectors: Vectors,
    tags: Mapping[str, str],
    outlines: Callable[[int, int], NDArray[np.float64]],
    source: str,
    taken: date | None,
) -> None:
    """Write GeoParquet: a row for each cell with a vector, with its footprint in the CRS of the scene.

    Args:
        path: File to write; an existing one is replaced.
        vectors: Content of the column 'vector'; for int8 the file's metadata contain the scales as JSON.
        tags: Further metadata.
        outlines: Function that returns the footprints of rows of cells, [rows, columns, 5, 2].
        source: Name of the scene.
        taken: Date of the scene.

    Raises:
        DataError: It cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    precision, count = vectors.precision, len(vectors.names)
    fields = {
        "geometry": pa.binary(), "vector": pa.list_(pa.from_numpy_dtype(np.dtype(precision.dtype)), count),
        "source": pa.string(), "date": pa.date32(), "row": pa.int32(), "column": pa.int32(),
    }  # fmt: skip
    corners = outlines(0, vectors.grid.height)[[0, -1]]
    metadata = {**tags, "geo": json.dumps(_geo(vectors.grid.crs, corners))}
    if precision.scales:
        metadata["scale"] = json.dumps(precision.scales)
    schema = pa.schema(list(fields.items()), metadata)
    with _saying(path), completing(path) as partial:
        with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
            for first, last in chunks(vectors.grid.height, vectors.row_bytes):
                values = vectors.read(first, last)
                known = ~np.isnan(values[0]) if values.dtype.kind == "f" else values[0] != NO_VECTOR
                rows, columns = np.nonzero(known)
                flat = np.ascontiguousarray(values[:, rows, columns].T).reshape(-1)
                shapes = shapely.to_wkb(shapely.polygons(outlines(first, last)[rows, columns]))
                table = {
                    "geometry": pa.array(shapes, pa.binary()),
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), count),
                    "source": pa.array([source] * len(rows), pa.string()),
                    "date": pa.array([taken] * len(rows), pa.date32()),
                    "row": pa.array(rows + first, pa.int32()),
                    "column": pa.array(columns, pa.int32()),
                }
                writer.write_table(pa.table(table, schema=schema))
        with open(partial, "rb") as file:
            flush_to_disk(file.fileno())
        check_parquet(partial)


def _geo(crs: CRS, corners: NDArray[np.float64]) -> dict[str, Any]:
    """Return the metadata of GeoParquet.

    Args:
        crs: CRS of the scene.
        corners: Corners of cells at the edge of the scene, [..., 2].
    """
    import pyproj

    flat = corners.reshape(-1, 2)
    projection = pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict() if crs else None
    column = {
        "encoding": "WKB", "geometry_types": ["Polygon"], "crs": projection,
        "bbox": [*flat.min(axis=0).tolist(), *flat.max(axis=0).tolist()],
    }  # fmt: skip
    return {"version": GEOPARQUET, "primary_column": "geometry", "columns": {"geometry": column}}


def read_parquet_tag(path: Path, name: str) -> str | None:
    """Return an entry of the metadata of a Parquet file.

    Raises:
        OSError: It is not a Parquet file; a ValueError means the same.
    """
    import pyarrow.parquet as pq

    value = (pq.read_schema(path).metadata or {}).get(name.encode())
    return None if value is None else value.decode()


def check_parquet(path: Path) -> None:
    """Read a Parquet file to its end.

    Raises:
        OSError: It is damaged; a ValueError means the same.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            file.read_row_group(number)
