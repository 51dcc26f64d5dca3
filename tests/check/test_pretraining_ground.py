"""Test chips on ground of TerraMesh are found by their position."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.check.pretraining_ground import find_pretrained, read_centres
from terramind_plugin.errors import ConfigError
from terramind_plugin.raster.georeference import Grid

X, Y = 600000.0, 5300000.0
"""Centre of a sample in UTM zone 32."""


def chip(east: float, north: float, size: int = 256) -> Grid:
    """Return a chip whose centre is some metres from the sample's."""
    left, top = X + east - size * 5, Y + north + size * 5
    return Grid(size, size, CRS.from_epsg(32632), Affine(10, 0, left, 0, -10, top))


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    longitude, latitude = Transformer.from_crs(32632, 4326, always_xy=True).transform(X, Y)
    path = tmp_path / "train_metadata.parquet"
    names = ["far", "here", "other side"]
    pd.DataFrame(
        {
            "zarr": [f"{name}.zarr.zip" for name in names],
            "tar": ["a", "b", "c"],
            "center_lat": [0.0, latitude, latitude],
            "center_lon": [longitude, longitude, longitude - 180],
        }
    ).to_parquet(path)
    return path


def test_chips_that_touch_a_sample_are_found(metadata: Path):
    centres = read_centres(metadata)
    reach = (2560 + 2640) / 2
    grids = {
        "same": chip(0, 0),
        "edge": chip(reach - 100, 100 - reach),
        "east": chip(reach + 100, 0),
        "south": chip(0, -reach - 100),
        "large": chip(5000, 0, 1024),
    }
    found = find_pretrained(grids, centres.longitudes, centres.latitudes)
    assert set(found) == {"same", "edge", "large"}
    assert {str(centres.names[row]) for row in found.values()} == {"here.zarr.zip"}


def test_chips_in_degrees(metadata: Path):
    centres = read_centres(metadata)
    longitude, latitude = centres.longitudes[1], centres.latitudes[1]
    near = Grid(100, 100, CRS.from_epsg(4326), Affine(1e-4, 0, longitude, 0, -1e-4, latitude))
    away = Grid(100, 100, CRS.from_epsg(4326), Affine(1e-4, 0, longitude + 0.05, 0, -1e-4, latitude))
    assert set(find_pretrained({"near": near, "away": away}, centres.longitudes, centres.latitudes)) == {"near"}


def test_metadata_that_cannot_be_used(tmp_path: Path, metadata: Path):
    with pytest.raises(ConfigError, match="no file"):
        read_centres(tmp_path / "none.parquet")
    pd.read_parquet(metadata)[["zarr", "tar"]].to_parquet(metadata)
    with pytest.raises(ConfigError, match="no centres"):
        read_centres(metadata)
    metadata.write_text("text")
    with pytest.raises(ConfigError, match="is not a readable Parquet file"):
        read_centres(metadata)
