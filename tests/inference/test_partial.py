"""What is finished of a scene survives the process."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.inference.resume import Partial
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.writer import Layer, write_layer

CLASSES = Layer("classes", "uint8", ("class",), "class id", 255, {0: (1, 2, 3, 255), 1: (9, 8, 7, 255)})
VALUES = Layer("values", "float32", ("a", "b"), "dB", float("nan"), tags={"note": "x"})
SHAPE = (700, 900)
GRID = Grid(*SHAPE, CRS.from_epsg(32632), Affine(10, 0, 500_000, 0, -10, 5_000_000))


def _rows(first: int, last: int) -> list[np.ndarray]:
    random = np.random.default_rng(first)
    return [
        random.integers(0, 2, (1, last - first, SHAPE[1]), np.uint8),
        random.normal(size=(2, last - first, SHAPE[1])).astype(np.float32),
    ]


def test_rows_are_kept(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "x.partial", (CLASSES, VALUES), SHAPE)
    record = {"seed": 1, "written": "2026-01-01"}
    assert partial.start(record) == record
    partial.write(100, _rows(100, 250))
    partial.write(0, _rows(0, 100))
    partial.release()
    again = Partial(tmp_path / "x.partial", (CLASSES, VALUES), SHAPE)
    assert again.start({"seed": 1, "written": "2026-02-02"}) == record  # the day of the first run stays
    assert sorted(again.finished()) == [(0, 100), (100, 250)]
    for layer, first, second in zip((CLASSES, VALUES), _rows(0, 100), _rows(100, 250), strict=True):
        np.testing.assert_array_equal(again.read(layer, 50, 150), np.concatenate([first, second], axis=1)[:, 50:150])
    # A line that was cut off does not count, nor does it spoil what comes after it.
    with open(next(again.folder.glob("rows-*")), "a") as file:
        file.write("250 3")
    again.write(250, _rows(250, 260))
    assert sorted(again.finished()) == [(0, 100), (100, 250), (250, 260)]
    again.remove()
    assert not again.folder.exists()


def test_other_settings_and_other_runs(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "x.partial", (CLASSES,), SHAPE)
    partial.start({"seed": 1})
    partial.write(0, _rows(0, 10)[:1])
    other = Partial(tmp_path / "x.partial", (CLASSES,), SHAPE)
    with pytest.raises(ConfigError, match="Another run is working on"):
        other.start({"seed": 1})
    partial.release()
    with pytest.raises(ConfigError, match=r"other settings \(seed: 1 there, 2 now\).*--restart"):
        other.start({"seed": 2})
    assert other.finished() == [(0, 10)]
    other.start({"seed": 2}, anew=True)
    assert other.finished() == []
    # A folder that was half deleted is begun again.
    other.release()
    (other.folder / "run.json").unlink()
    assert other.start({"seed": 3}) == {"seed": 3}
    other.remove()


@pytest.fixture
def full_disk() -> Any:
    """Let no file of this process grow beyond some bytes, as if the disk were full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(count: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_no_room(tmp_path: Path, full_disk: Any) -> None:
    full_disk(100_000)
    with pytest.raises(DataError, match=r"Cannot keep results in .*need 0\.01 GiB.*Free some space"):
        Partial(tmp_path / "x.partial", (CLASSES, VALUES), SHAPE).start({})


@pytest.mark.parametrize("limit", [20_000, 1_000_000, 2_500_000])
@pytest.mark.parametrize("cog", [False, True])
def test_no_room_for_the_file(tmp_path: Path, full_disk: Any, limit: int, cog: bool) -> None:
    image = _rows(0, SHAPE[0])[1]
    full_disk(limit)
    with pytest.raises(DataError, match=r"x\.tif cannot be written: .*Is the disk full"):
        write_layer(tmp_path / "x.tif", lambda a, b: image[:, a:b], VALUES, GRID, {}, cog=cog)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_files_for_gis(tmp_path: Path, cog: bool, number: int) -> None:
    layer, image = (CLASSES, VALUES)[number], _rows(0, SHAPE[0])[number]
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path in paths:
        write_layer(path, lambda a, b: image[:, a:b], layer, GRID, {"model": "m"}, cog=cog)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths
    with rasterio.open(paths[0]) as file:
        np.testing.assert_array_equal(file.read(), image)
        assert (file.crs, file.transform, file.shape) == (GRID.crs, GRID.transform, SHAPE)
        assert file.descriptions == layer.descriptions
        assert file.units == (layer.units,) * file.count
        assert file.overviews(1) == [2, 4]
        assert file.profile["tiled"]
        assert file.compression.value == "DEFLATE"
        assert file.tags()["model"] == "m"
        assert file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == ("COG" if cog else None)
        if layer.colormap is not None:
            assert file.nodata == 255
            assert file.colormap(1)[1] == (9, 8, 7, 255)
            assert set(np.unique(file.read(out_shape=(1, 175, 225)))) == {0, 1}  # overviews mix no classes
        else:
            assert np.isnan(file.nodata)
            assert file.tags()["note"] == "x"
            assert file.scales == (1.0, 1.0)
