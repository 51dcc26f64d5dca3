"""`terramind chips` over HTTP: bytes, and every way in which a server fails."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from terramind_plugin.cli import main
from terramind_plugin.sources import datasets, engine
from tests.sources.ground import Ground
from tests.sources.server import Server, serve

SECOND = "S2B_MSIL2A_20230617T102609"
"""Begin of the id of the scene of the second date."""


@pytest.fixture
def server(ground: Ground, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "PAUSE", 0.01)
    monkeypatch.setitem(engine.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.01)
    datasets.close_datasets()
    with serve(ground.root) as running:
        yield running
    datasets.close_datasets()


def over(server: Server, words: list[str], out: Path, *more: str) -> int:
    return main([words[0], words[1], f"{server.url}/catalog.json", *words[3:], "--out", str(out), *more])


def images(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tif"))}


def test_http_gives_the_bytes_of_the_disk_and_the_plan_says_how_many_are_read(
    server: Server, words: list[str], chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert over(server, words, tmp_path / "data", "--plan_only") == 0
    said = float(capsys.readouterr().out.split(" MiB to read")[0].split()[-1]) * 2**20
    datasets.close_datasets()
    before = server.count()[1]
    assert before < 0.1 * said  # the scene classification and headers alone
    server.requests.clear()
    assert over(server, words, tmp_path / "data") == 0
    read = sum(one.bytes for one in server.requests if one.path.endswith(".tif"))
    assert images(tmp_path / "data") == images(chips)
    assert abs(read - said) < 0.2 * said


def test_a_scene_that_cannot_be_read_costs_its_chips_alone(
    server: Server, words: list[str], chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server.fail(f"{SECOND}.*B11", 500)
    assert over(server, words, tmp_path / "data") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sentinel-2-l2a/S2B_MSIL2A_20230617" in told
    assert "B11" in told
    table = pd.read_parquet(tmp_path / "data" / "chips.parquet").set_index("id")
    whole = pd.read_parquet(chips / "chips.parquet").set_index("id")
    lost = whole["date"].str.startswith("2023-06-17")
    assert 0 < lost.sum() < len(lost)
    assert set(table.index[table["status"] == "failed"]) == set(whole.index[lost])
    assert set(table.index[table["status"] == "written"]) == set(whole.index[~lost])
    server.faults.clear()
    assert over(server, words, tmp_path / "data") == 0
    assert images(tmp_path / "data") == images(chips)


def test_passing_failures_change_nothing(server: Server, words: list[str], chips: Path, tmp_path: Path):
    server.fail("20230612.*B02", 403, times=1)
    server.fail("20230612.*B05", 503, times=2)
    server.fail("20230617.*B12", 429, times=1)
    server.fail("20230617.*B03", "truncate", times=1)
    server.fail("dem", 500, times=1)
    assert over(server, words, tmp_path / "data") == 0
    assert images(tmp_path / "data") == images(chips)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("missing.json", "cannot be read"),
        ("items.json/no", "cannot be read"),
        ("aoi.geojson", "is not a STAC catalogue"),
    ],
)
def test_addresses_that_are_no_catalogue(server: Server, words: list[str], tmp_path: Path, page, message, capsys):
    assert main([words[0], words[1], f"{server.url}/{page}", *words[3:], "--out", str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
