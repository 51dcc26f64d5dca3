"""`terramind localise`, on both hemispheres."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import rasterio
import torch

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.evaluate import locate as places
from terramind_plugin.evaluate.chips import ChipFiles, find_rasters, image_modality
from terramind_plugin.evaluate.locate import Belief
from terramind_plugin.model.modalities import resolve
from terramind_plugin.raster.chips import read_chip
from terramind_plugin.simulation.dataset import simulate

MODEL = ("--modality", "S2L2A", "--model", "terramind_sim_nano", "--pretrained", "false")


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with chips of a globe, and their places by file name."""
    scenes = simulate(tmp_path_factory.mktemp("globe"), chips=8, size=48, world="globe")
    table = read_table(scenes.root / "labels.csv")
    rows = {row["chip"]: (float(row["longitude"]), float(row["latitude"])) for row in table}
    assert {np.sign(latitude) for _, latitude in rows.values()} == {-1, 1}
    assert {np.sign(longitude) for longitude, _ in rows.values()} == {-1, 1}
    return scenes.root / "data" / "S2L2AHand", {f"{name}_S2L2AHand.tif": place for name, place in rows.items()}


def test_maps(world, tmp_path, capsys):
    folder, known = world
    chip = folder / next(iter(known))
    assert main(["localise", str(chip), *MODEL, "--out", str(tmp_path), "--top", "3", "--mass", "1"]) == 0
    printed = capsys.readouterr()
    assert "random" in printed.err
    assert printed.out.startswith(f"{chip.name}: ")
    with rasterio.open(tmp_path / f"{chip.stem}_places.tif") as file:
        assert (file.crs, file.shape, file.dtypes) == ("EPSG:4326", (37, 73), ("float32",))
        assert file.xy(0, 0) == (-180, 90)
        assert file.xy(36, 72) == (180, -90)
        probabilities = file.read(1)
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    (row,) = read_table(tmp_path / "places.csv")
    line, column = np.unravel_index(probabilities.argmax(), probabilities.shape)
    assert (float(row["longitude_1"]), float(row["latitude_1"])) == (-180 + 5 * column, 90 - 5 * line)
    assert float(row["probability_1"]) == pytest.approx(probabilities.max(), rel=1e-3)
    assert float(row["longitude_true"]) == pytest.approx(known[chip.name][0], abs=0.01)
    assert float(row["latitude_true"]) == pytest.approx(known[chip.name][1], abs=0.01)
    assert (tmp_path / f"{chip.stem}_places.png").stat().st_size > 5000


def test_a_labelled_folder(world, tmp_path, capsys):
    folder, known = world
    assert main(["localise", str(folder), *MODEL, "--labelled", "--out", str(tmp_path), "--batch_size", "3"]) == 0
    assert "anywhere on the globe" in capsys.readouterr().out
    rows = read_table(tmp_path / "places.csv")
    assert [row["chip"] for row in rows] == sorted(known)
    made = json.loads((tmp_path / "places.json").read_text())["errors"]
    for name, kind in (("likeliest place", "likeliest"), ("place of least expected distance", "middle")):
        errors = [float(row[f"error_{kind}_km"]) for row in rows]
        assert made[name]["median"] == pytest.approx(np.median(errors), abs=0.1)
        assert made[name]["near"] == np.mean(np.array(errors) <= 1000)
        assert made[name]["low"] <= made[name]["median"] <= made[name]["high"]
        assert max(errors) <= 20016
    assert made["anywhere"]["median"] == pytest.approx(10007.6, abs=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {"places.csv", "places.json", "places.png"}


def test_a_map_of_places_agrees_with_the_search(world):
    folder, _ = world
    chips = [read_chip(path, resolve("S2L2A"), side=64, multiple=8) for path in sorted(folder.iterdir())[:2]]
    model = places.build_locator("terramind_sim_nano", "S2L2A", pretrained=False)
    image = torch.from_numpy(np.stack([chip.values for chip in chips]))
    found = model.locate({"S2L2A": image}, count=37 * 73)
    alone = [belief for chip in chips for _, belief in places.locate(model, "S2L2A", [chip], mass=1)]
    for number, (_, belief) in enumerate(places.locate(model, "S2L2A", chips, mass=1, batch_size=2)):
        np.testing.assert_allclose(belief.probabilities, alone[number].probabilities, rtol=1e-3, atol=1e-7)
        for place, share in zip(found.positions[number, ::50], found.probabilities[number, ::50], strict=True):
            row = int(np.flatnonzero(belief.latitudes == float(place[1]))[0])
            column = int(np.flatnonzero(belief.longitudes == float(place[0]))[0])
            assert float(share) == pytest.approx(belief.probabilities[row, column], rel=1e-3)
    calls: list[tuple[int, int]] = []
    part = model.map_locations({"S2L2A": image}, 0.5, on_latitude=lambda done, total: calls.append((done, total)))
    assert 0 < len(calls) == calls[-1][1] < 37
    assert (part.probabilities.sum(dim=(1, 2)) >= 0.5 - 1e-5).all()
    whole = np.stack([belief.probabilities for belief in alone])
    there = part.probabilities.numpy() > 0
    np.testing.assert_allclose(part.probabilities.numpy()[there], whole[there], rtol=1e-3)


def test_least_expected_distance_goes_round_the_globe():
    longitudes, latitudes = np.arange(-180, 181, 10.0), np.arange(90, -91, -10.0)
    probabilities = np.zeros((19, 37), np.float32)
    for longitude in (-160, 160, 170):  # the middle of these is at 170, not near Greenwich
        probabilities[9, longitudes == longitude] = 0.3
    probabilities[0, 0] = 0.1
    belief = Belief(longitudes, latitudes, probabilities)
    assert belief.middle().tolist() == [170, 0]
    found, shares = belief.likeliest(4)
    assert {tuple(place) for place in found[:3]} == {(-160, 0), (160, 0), (170, 0)}
    assert (found[3].tolist(), shares[3]) == ([-180, 90], pytest.approx(0.1))


def test_the_best_place_for_all():
    cluster = np.array([[10.0, 50.0], [11.0, 50.0], [10.0, 51.0], [-120.0, -40.0]])
    best = places.best_constant(cluster)
    assert np.median(places.great_circle(best, cluster)) < 120
    errors = places.compare_errors(cluster, cluster, cluster + np.array([0, 5.0]))
    assert errors[0].median.value == 0
    assert errors[0].near == 1
    assert errors[1].median.value == pytest.approx(556, abs=1)


def test_the_middle_of_a_large_chip(world, tmp_path):
    folder, known = world
    path = folder / next(iter(known))
    whole = read_chip(path, resolve("S2L2A"), side=64, multiple=8)
    part = read_chip(path, resolve("S2L2A"), side=32, multiple=8)
    np.testing.assert_array_equal(part.values, whole.values[:, 8:40, 8:40])
    assert part.grid.centre() == whole.grid.centre()
    odd = read_chip(path, resolve("S2L2A"), side=44, multiple=8)
    assert odd.values.shape == (12, 48, 48)


def test_mistakes(world, tmp_path):
    folder, known = world
    path = folder / next(iter(known))
    with pytest.raises(ConfigError, match=r"There is no model 'base'.*terramind_v1_base"):
        places.build_locator("base", "S2L2A")
    with pytest.raises(ConfigError, match="LULC is not an image"):
        image_modality("LULC")
    with pytest.raises(DataError, match="No raster"):
        find_rasters([tmp_path])
    with rasterio.open(path) as file:
        profile, values = file.profile, file.read()
    profile.update(crs=None)
    with rasterio.open(tmp_path / "chip.tif", "w", **profile) as file:
        file.write(values)
    with pytest.raises(DataError, match="has no CRS"):
        ChipFiles([tmp_path / "chip.tif"], resolve("S2L2A"), 64, 8).positions(required=True)
    with pytest.raises(ConfigError, match="mass must be"):
        list(places.locate(None, "S2L2A", [], mass=0))
