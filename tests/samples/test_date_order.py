"""The order of bands and dates in files, as their values show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.samples.checks.dates import check_date_order
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.sample import Summary, read_sample
from terramind_plugin.samples.layout import SplitFile
from terramind_plugin.samples.plan import DataPlan, ImagePlan, Split
from terramind_plugin.simulation.chip import simulate_chip

REAL = Path(__file__).parents[3] / "shared" / "data" / "terramesh"


def _summaries(image: ImagePlan, paths: list[Path]) -> list[Summary]:
    split = Split("train", None, SplitFile(), samples={path.stem: {image.name: path} for path in paths})
    plan = DataPlan([image], [split], {}, True, "none", None, (), None, None, False, False, 1, False, ())
    return read_sample(plan, 8).images[image.name]


def _plan(name: str, *, by_band: bool) -> ImagePlan:
    entry = MODALITIES[name]
    return ImagePlan(name, entry, entry.band_names, (), entry.mean, entry.std, dates=True, by_band=by_band)


def _write(path: Path, dates: list[np.ndarray], *, by_band: bool) -> Path:
    image = np.stack(dates, axis=1 if by_band else 0).reshape(-1, *dates[0].shape[1:])
    with rasterio.open(
        path, "w", driver="GTiff", count=len(image), height=image.shape[1], width=image.shape[2], dtype=image.dtype
    ) as file:
        file.write(image)
    return path


def _look(folder: Path, name: str, shots: list[np.ndarray], *, stored: bool, read: bool) -> Finding:
    image = _plan(name, by_band=read)
    (finding,) = check_date_order(image, _summaries(image, [_write(folder / "x.tif", shots, by_band=stored)]))
    return finding


@pytest.mark.parametrize("name", ["S2L2A", "S2L1C", "S1GRD"])
@pytest.mark.parametrize("stored", [False, True])
def test_simulated_series(name: str, stored: bool, tmp_path: Path) -> None:
    chips = [simulate_chip(5, index, 32).images[name] for index in range(3)]
    right = _look(tmp_path, name, chips, stored=stored, read=stored)
    assert (right.check, right.verdict) == (f"values: {name} dates", "ok")
    assert "1 file of 3 dates, all " + ("dates of a band" if stored else "bands of a date") in right.seen
    wrong = _look(tmp_path, name, chips, stored=stored, read=not stored)
    assert (wrong.verdict, wrong.advice) == ("error", f"Set temporal_channel_major: {str(stored).lower()}.")
    assert "x.tif" in wrong.seen


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples")
@pytest.mark.parametrize("name", ["S2L2A", "S2L1C", "S1RTC"])
def test_real_images_as_dates(name: str, tmp_path: Path) -> None:
    shots = []
    for path in sorted((REAL / name).glob("*.tif")):
        with rasterio.open(path) as file:
            shots.append(file.read())
    for stored in (False, True):
        assert _look(tmp_path, name, shots, stored=stored, read=stored).verdict == "ok"
        assert _look(tmp_path, name, shots, stored=stored, read=not stored).verdict == "error"
        # Two dates, one of them with the offset of +1000, may not show their order; they never show the wrong one.
        assert _look(tmp_path, name, shots[:2], stored=stored, read=stored).verdict in ("ok", "note")
        assert _look(tmp_path, name, shots[:2], stored=stored, read=not stored).verdict in ("error", "note")


def test_values_that_show_nothing(tmp_path: Path) -> None:
    flat = [np.full((12, 8, 8), 100 * date, np.uint16) for date in (1, 2)]
    found = _look(tmp_path, "S2L2A", flat, stored=False, read=False)
    assert (found.verdict, found.seen.endswith("the values do not show which order is right.")) == ("note", True)
    one = _plan("DEM", by_band=False)
    dem = [np.full((1, 8, 8), 100.0, np.float32)] * 2
    assert not list(check_date_order(one, _summaries(one, [_write(tmp_path / "d.tif", dem, by_band=False)])))


def test_bands_are_pooled_over_the_dates_in_both_orders(tmp_path: Path) -> None:
    shots = [np.stack([np.full((8, 8), 10 * date + band, np.float32) for band in range(2)]) for date in range(3)]
    for by_band in (False, True):
        path = _write(tmp_path / "s.tif", shots, by_band=by_band)
        (summary,) = _summaries(_plan("S1GRD", by_band=by_band), [path])
        assert summary.median.tolist() == [10, 11]
        assert len(summary.levels) == 6
