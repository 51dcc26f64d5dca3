"""Writing Zarr groups (version 2) and tar shards, without the package zarr."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from terramind_plugin.errors import ConfigError
from terramind_plugin.shards.decode import AXES, DIMENSIONS
from terramind_plugin.system.files import ZARR_ZIP, completing

DATE = (1980, 1, 1, 0, 0, 0)
"""Fixed date of the members, so that the same arrays give the same bytes."""
COMPRESSOR = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
"""Compression of all arrays: the default of zarr 2 and numcodecs."""


def write_group(
    arrays: Mapping[str, tuple[Sequence[str], ArrayLike]], *, compressor: Mapping[str, Any] | None = COMPRESSOR
) -> bytes:
    """Return a zipped Zarr group with consolidated metadata, each array in one chunk.

    Args:
        arrays: Names of the dimensions, and numbers or texts, by array.
        compressor: Settings of a numcodecs codec; None to store the numbers uncompressed.

    Raises:
        ConfigError: numcodecs is not installed.
    """
    encode = bytes
    if compressor is not None:
        try:
            from numcodecs import get_codec
        except ImportError as error:
            raise ConfigError(
                "Writing shards needs numcodecs, which is not installed: pip install 'terramind-plugin[shards]'."
            ) from error
        encode = get_codec(dict(compressor)).encode
    documents: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": {}}
    chunks: dict[str, bytes] = {}
    for name, (dimensions, given) in arrays.items():
        values = np.array(given, order="C")  # keeps a scalar a scalar, unlike ascontiguousarray
        documents[f"{name}/.zarray"] = {
            "chunks": [max(length, 1) for length in values.shape],
            "compressor": None if compressor is None else dict(compressor),
            "dtype": values.dtype.str,
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": list(values.shape),
            "zarr_format": 2,
        }
        documents[f"{name}/.zattrs"] = {DIMENSIONS: list(dimensions)}
        if values.size:
            chunks[f"{name}/{'.'.join(['0'] * values.ndim) or '0'}"] = bytes(encode(values.tobytes()))
    consolidated = {"zarr_consolidated_format": 1, "metadata": documents}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, document in {**documents, ".zmetadata": consolidated}.items():
            file.writestr(zipfile.ZipInfo(name, DATE), json.dumps(document, indent=4))
        for name, chunk in chunks.items():
            file.writestr(zipfile.ZipInfo(name, DATE), chunk)
    return stream.getvalue()


def write_sample(
    values: ArrayLike,
    bands: Sequence[str],
    *,
    left: float,
    top: float,
    epsg: int,
    centre: tuple[float, float],
    sample: str,
    times: ArrayLike = (0,),
    resolution: float = 10.0,
    more: Mapping[str, tuple[Sequence[str], ArrayLike]] | None = None,
) -> bytes:
    """Return the member of a shard for one modality of a sample, with TerraMesh's layout.

    Args:
        values: Pixels [bands, H, W] or [dates, bands, H, W] in the type to store.
        bands: Names of the bands.
        left: Coordinate of the left edge in metres.
        top: Coordinate of the upper edge in metres.
        epsg: Code of the coordinate reference system.
        centre: Longitude and latitude of the centre in degrees.
        sample: Name of the sample, e.g. '433D_629L_3_1'.
        times: Time of each date in nanoseconds since 1970.
        resolution: Side of a pixel in metres.
        more: Further arrays with their dimensions, e.g. cloud_mask.

    Raises:
        ConfigError: The bands or dates do not fit the pixels.
    """
    pixels = np.asarray(values)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    dates = np.atleast_1d(np.asarray(times, np.int64))
    if pixels.ndim != 4 or pixels.shape[:2] != (len(dates), len(bands)):
        raise ConfigError(
            f"values of shape {list(pixels.shape)} do not fit {len(dates)} dates and {len(bands)} bands: "
            "[dates, bands, H, W] is expected."
        )
    height, width = pixels.shape[2:]
    return write_group(
        {
            "bands": (AXES, pixels),
            "band": (["band"], np.array(list(bands))),
            "time": (["time"], dates),
            "x": (["x"], left + resolution * (np.arange(width) + 0.5)),
            "y": (["y"], top - resolution * (np.arange(height) + 0.5)),
            "center_lon": ([], np.float64(centre[0])),
            "center_lat": ([], np.float64(centre[1])),
            "crs": ([], np.int64(epsg)),
            "sample": ([], np.array(sample)),
            **(more or {}),
        }
    )


class ShardWriter:
    """Writer of the tars of one shard, one for each modality's folder. Made by `write_shard`.

    Args:
        files: Open tars by folder.
    """

    def __init__(self, files: Mapping[str, tarfile.TarFile]) -> None:
        self._files = files

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample to all tars.

        Args:
            key: Name of the sample in the shard, without a dot.
            members: Result of `write_sample` by folder.

        Raises:
            ConfigError: A folder is missing or unknown, or the key has a dot.
        """
        if "." in key or members.keys() != self._files.keys():
            raise ConfigError(
                f"{key} needs a name without a dot and one member for each of {', '.join(self._files)}, got "
                f"{', '.join(members)}."
            )
        for folder, content in members.items():
            header = tarfile.TarInfo(f"{key}{ZARR_ZIP}")
            header.size = len(content)
            self._files[folder].addfile(header, io.BytesIO(content))


@contextmanager
def write_shard(root: str | Path, split: str, shard: str, folders: Sequence[str]) -> Iterator[ShardWriter]:
    """Yield a writer of one shard. Its tars get their names when the context ends, and are removed after an error.

    Args:
        root: Folder of the data set; folders are created.
        split: Folder of the split.
        shard: Name of the shard, e.g. 'majortom_shard_000001'.
        folders: Folders of the modalities, e.g. S2L2A.

    Raises:
        OSError: A file cannot be written.
    """
    with ExitStack() as stack:
        files = {}
        for folder in folders:
            path = Path(root, split, folder, f"{shard}.tar")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(completing(path))
            files[folder] = stack.enter_context(tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT))
        yield ShardWriter(files)
