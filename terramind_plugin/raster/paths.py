"""Paths of rasters: files on disk, and URLs and virtual paths that GDAL opens."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from terramind_plugin.system.files import ZARR_ZIP


class RemotePath(type(Path())):  # type: ignore[misc]
    """Path of a raster outside the file system: a URL, or a path below /vsizip/, /vsicurl/, /vsis3/...

    A `Path` would replace the double slash in 'https://host/a.tif' and '/vsizip//data/a.zip/b.tif'. This class keeps
    the text as it was written. Its `name` is the name of the raster, without the query of a URL.
    """

    text: str

    def __new__(cls, text: str) -> RemotePath:
        """Return the path of a name."""
        made: RemotePath = super().__new__(cls, text)
        made.text = text
        return made

    def __reduce__(self) -> Any:
        return RemotePath, (self.text,)

    def __str__(self) -> str:
        return self.text

    def __fspath__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path itself: there are no links outside the file system."""
        return self

    @property
    def _raster(self) -> PurePosixPath:
        # 'zip://a.zip!b.tif' is rasterio's way to name a file in an archive.
        return PurePosixPath(re.split(r"[?#]", self.text, maxsplit=1)[0].replace("!", "/"))

    @property
    def name(self) -> str:
        """Return the name of the raster, e.g. 'b.tif'."""
        return self._raster.name

    @property
    def stem(self) -> str:
        """Return the name of the raster without its ending."""
        return self._raster.stem

    @property
    def suffix(self) -> str:
        """Return the ending of the raster's name."""
        return self._raster.suffix


def is_remote(text: object) -> bool:
    """Return whether a path or a text is a URL or one of GDAL's virtual paths."""
    return "://" in str(text) or str(text).startswith("/vsi")


def remote_path(text: str | Path) -> RemotePath:
    """Return the path of a URL or of one of GDAL's virtual paths.

    Raises:
        ValueError: The text is a path of the file system.
    """
    if not is_remote(text):
        raise ValueError(f"{text} is neither a URL nor one of GDAL's virtual paths")
    return RemotePath(str(text))


def raster_path(text: str | Path) -> Path:
    """Return the path of a raster that a user has named: a file, a URL, or one of GDAL's virtual paths."""
    return RemotePath(str(text)) if is_remote(text) else Path(text)


RASTERS = (".tif", ".tiff", ".nc", ".nc4", ZARR_ZIP)
"""Endings of rasters in data sets: GeoTIFF, NetCDF and zipped zarr."""


def is_raster(path: Any) -> bool:
    """Return whether an object is the path of a raster of a data set."""
    return isinstance(path, str | Path) and str(path).lower().endswith(RASTERS)
