"""Simulated series: floods before, at and after their peak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from terramind_plugin.errors import ConfigError
from terramind_plugin.evaluate.figure import draw_predictions
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation.chip import simulate_chip
from terramind_plugin.simulation.dataset import chip_files, simulate
from terramind_plugin.simulation.terrain import flood_levels, make_flood, make_terrain, recede
from terramind_plugin.simulation.worlds import flood_site

SERIES = ("S2L1C", "S2L2A", "S1GRD", "S1RTC", "NDVI", "RGB")


def test_levels() -> None:
    assert [flood_levels(dates) for dates in (1, 2, 3)] == [[1], [0, 1], [0, 1, 0]]
    assert flood_levels(4) == [0, 1, 0.5, 0]
    assert len(flood_levels(9)) == 9


def test_the_peak_is_the_chip_with_one_date() -> None:
    one, four = simulate_chip(0, 3, 32), simulate_chip(0, 3, 32, flood_site, 4)
    assert np.array_equal(one.label, four.label)
    for name, image in one.images.items():
        bands = len(MODALITIES[name].bands)
        if name in SERIES:
            assert len(four.images[name]) == 4 * bands
            peak = four.images[name][bands : 2 * bands]
        else:
            peak = four.images[name]
        np.testing.assert_array_equal(peak, image)


def test_water_falls_with_the_level() -> None:
    flooded = 0
    for index in range(6):
        region = flood_site(1, index).region
        terrain = make_terrain(np.random.default_rng(index), region, 32)
        peak = make_flood(np.random.default_rng(index), region, terrain)
        half, after = (recede(peak, terrain, level, left=True) for level in (0.5, 0.0))
        before = recede(peak, terrain, 0.0, left=False)
        assert recede(peak, terrain, 1.0, left=True) is peak
        assert np.array_equal(after.water, terrain.river)
        assert np.array_equal(before.water, terrain.river)
        assert not (half.water & ~peak.water).any()
        assert not (terrain.river & ~half.water).any()
        flooded += after.water.sum() < half.water.sum() < peak.water.sum()
        left = peak.water & ~after.water
        assert (after.wetness[left] > 0.8).all()
        assert not before.wetness.any()
        assert (half.depth[half.water & ~terrain.river] > 0).mean() > 0.9 or not half.water[~terrain.river].any()
    assert flooded >= 4


def test_files_of_series(tmp_path: Path) -> None:
    made = simulate(tmp_path / "set", chips=3, size=32, dates=3)
    files = chip_files(made.root, made.chip_ids[0])
    with rasterio.open(files["S1GRD"]) as file:
        assert (file.count, file.descriptions) == (6, ("VV", "VH") * 3)
    for key in ("DEM", "label"):
        with rasterio.open(files[key]) as file:
            assert file.count == 1
    with pytest.raises(ConfigError, match=r"'dates': 3.*requested"):
        simulate(tmp_path / "set", chips=3, size=32)
    with pytest.raises(ConfigError, match="dates must be 1 to 24, got 0"):
        simulate(tmp_path / "new", chips=3, size=32, dates=0)
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / f"{made.chip_ids[0]}_S2Hand_pred.tif").write_bytes(files["label"].read_bytes())
    draw_predictions(made.root / "data", folder, tmp_path / "figure.png", chips=1, class_names=["Land", "Water"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
