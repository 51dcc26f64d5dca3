"""`terramind embed` of several dates, of areas from catalogues, and of fine-tuned models as their data module reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import Affine
from torch import Tensor

from terramind_plugin.builders import build_backbone
from terramind_plugin.cli import main
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.sources import mosaic
from tests.inference.conftest import read_raster, refused, write_modality
from tests.sources.ground import HOME, Ground, aoi

NANO, SIDE, DIM = "terramind_sim_nano", 32, 128
ENTRY = MODALITIES["S2L2A"]


def _embed(*words: Any, model: Any = NANO) -> int:
    return main(["embed", "--model", str(model), "--accelerator", "cpu", *map(str, words)])


def _one(out: Path, *words: Any, model: Any = NANO) -> np.ndarray:
    """Return the vectors of a command, [dimensions, rows, columns]."""
    assert _embed(*words, "--out", out, model=model) == 0
    (path,) = out.glob("*.tif")
    return read_raster(path)


def _maps(tokens: Tensor) -> np.ndarray:
    """Return tokens [1, N, D] of a square image as [D, rows, columns]."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens[0].T.reshape(-1, side, side).numpy()


def _standardised(values: np.ndarray) -> Tensor:
    return Standardisation(ENTRY.mean, ENTRY.std)(torch.from_numpy(values)[None])


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three dates of one scene; the second has no data in its right half."""
    folder = tmp_path_factory.mktemp("dates")
    gap = (slice(None), slice(SIDE, None))
    paths = []
    for number in (1, 2, 3):
        path = write_modality(
            folder / f"a_2024010{number}.tif", "S2L2A", (SIDE, 2 * SIDE), gap if number == 2 else None
        )
        with rasterio.open(path, "r+") as file:
            file.write(file.read() + 500 * number)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def features(dates: list[Path]) -> np.ndarray:
    """Return the vectors of each date by the backbone, [dates, dimensions, rows, columns]; the gap is NaN."""
    backbone = build_backbone(NANO, ["S2L2A"], pretrained=True).eval()
    found = []
    for path in dates:
        values = read_raster(path)
        halves = [values[..., :SIDE], values[..., SIDE:]]
        with torch.no_grad():
            maps = [_maps(backbone(_standardised(np.nan_to_num(half)))[-1]) for half in halves]
        if np.isnan(halves[1]).all():
            maps[1][:] = np.nan
        found.append(np.concatenate(maps, axis=2))
    return np.stack(found)


def test_dates_are_pooled(dates: list[Path], features: np.ndarray, tmp_path: Path) -> None:
    """A date without data in a window does not count there."""
    listed = ",".join(map(str, dates))
    words = ["--crop", SIDE, "--modality", "S2L2A"]
    got = _one(tmp_path / "mean", listed, *words)
    np.testing.assert_allclose(got, np.nanmean(features, axis=0), atol=2e-5)
    assert np.abs(features[0] - features[2]).max() > 0.1
    got = _one(tmp_path / "max", "--scene", f"S2L2A={listed}", *words[:2], "--temporal_pooling", "max")
    np.testing.assert_allclose(got, np.nanmax(features, axis=0), atol=2e-5)
    got = _one(tmp_path / "concat", listed, *words, "--temporal_pooling", "concat")
    assert got.shape == (3 * DIM, SIDE // 8, 2 * SIDE // 8)
    np.testing.assert_allclose(got[..., :4], features[..., :4].reshape(3 * DIM, 4, 4), atol=2e-5)
    with rasterio.open(next((tmp_path / "concat").glob("*.tif"))) as file:
        assert file.tags()["temporal_pooling"] == "concat"
        assert file.tags()["dates"] == "2024-01-01, 2024-01-02, 2024-01-03"


def test_dates_in_one_file_and_beside_another_modality(dates: list[Path], tmp_path: Path) -> None:
    values = [read_raster(dates[number]) for number in (0, 2)]
    stack, height = np.concatenate(values)[..., :SIDE], tmp_path / "dem.tif"
    profile = {"driver": "GTiff", "dtype": "float32", "crs": "EPSG:32632", "transform": Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(tmp_path / "two.tif", "w", count=24, height=SIDE, width=SIDE, **profile) as file:
        file.write(stack)
    write_modality(height, "DEM", (SIDE, SIDE), transform=profile["transform"])
    scenes = ["--scene", f"S2L2A={tmp_path / 'two.tif'}", "--scene", f"DEM={height}"]
    got = _one(tmp_path / "out", *scenes, "--temporal_pooling", "diff")
    backbone = build_backbone(NANO, ["S2L2A", "DEM"], pretrained=True).eval()
    dem = Standardisation(MODALITIES["DEM"].mean, MODALITIES["DEM"].std)(torch.from_numpy(read_raster(height))[None])
    with torch.no_grad():
        one, two = (backbone({"S2L2A": _standardised(x[..., :SIDE]), "DEM": dem})[-1] for x in values)
    np.testing.assert_allclose(got, _maps(one - two), atol=2e-5)


def test_what_is_refused_of_series(dates: list[Path], tmp_path: Path, capsys: Any) -> None:
    base = ["embed", "--model", NANO, "--modality", "S2L2A", "--out", tmp_path / "out"]
    three = ",".join(map(str, dates))
    assert "has 3 dates, expected 2 for temporal_pooling: diff" in refused(
        capsys, [*base, three, "--temporal_pooling", "diff"]
    )
    other = write_modality(tmp_path / "b_20240101.tif", "S2L2A", (SIDE, SIDE))
    assert "as the first scene has" in refused(
        capsys, [*base, three, f"{other},{dates[1]}", "--temporal_pooling", "concat"]
    )
    backwards = ",".join(map(str, reversed(dates)))
    assert "Give the files in the order of time" in refused(capsys, [*base, backwards])
    assert "one of the two" in refused(capsys, [*base[:3], "--out", tmp_path / "out"])
    assert "--modality names one modality" in refused(capsys, [*base, dates[0], "--modality", "DEM"])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a command line of a task of several dates, whose checkpoint has been written, and the checkpoint."""
    from types import SimpleNamespace

    from terramind_plugin.integration.lightning_cli import make_cli
    from tests.runs.running import change, segmentation_config

    folder = tmp_path_factory.mktemp("tuned")
    names = ["mosaic", "DEM"]
    for name, entry in (("mosaic", "S2L1C"), ("DEM", "DEM")):
        (folder / name).mkdir()
        for date in (1, 2):
            write_modality(folder / name / f"scene_2024010{date}.tif", entry, (SIDE, SIDE))
    for date in (1, 2):
        with rasterio.open(folder / "mosaic" / f"scene_2024010{date}.tif", "r+") as file:
            values = file.read() * date
            values[:, :5, :9] = np.nan
            file.write(values)
    bands = list(MODALITIES["S2L1C"].band_names)
    changes = {
        "data.modalities": [{"mosaic": "S2L1C"}, "DEM"],
        "data.data_root": {name: [str(folder / name)] * 2 for name in names},
        "data.image_grep": {name: ["*_20240101.tif", "*_20240102.tif"] for name in names},
        "data.dataset_bands": {"mosaic": bands},
        "data.output_bands": {"mosaic": ["RED", "BLUE"]},
        "data.means": {"mosaic": [1000.0, 900.0], "DEM": [300.0]},
        "data.stds": {"mosaic": [1500.0, 1600.0], "DEM": [200.0]},
        "data.offsets": {"mosaic": -100.0},
        "data.constant_scale": {"mosaic": 0.5},
        "data.expand_temporal_dimension": True,
        "data.batch_size": 1,
        "model_args.backbone": NANO,
        "model_args.backbone_modalities": [{"mosaic": "S2L1C"}, "DEM"],
        "model_args.backbone_bands": {"mosaic": ["RED", "BLUE"]},
        "model_args.backbone_use_temporal": True,
        "model_args.backbone_temporal_pooling": "max",
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(change(segmentation_config(SimpleNamespace(root=folder)), changes)))  # type: ignore[arg-type]
    cli = make_cli(["--config", str(config)])
    content = {
        "state_dict": cli.model.state_dict(),
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": dict(cli.model.hparams),
        "TerraMindDataModule": cli.datamodule.state_dict(),
    }
    torch.save(content, folder / "best.ckpt")
    return SimpleNamespace(folder=folder, cli=cli, checkpoint=folder / "best.ckpt")


def test_a_fine_tuned_model_reads_files_as_its_data_module(tuned: Any, tmp_path: Path) -> None:
    """Names, bands, offsets, scales, gaps and dates are those of the training."""
    datamodule, task = tuned.cli.datamodule, tuned.cli.model.eval()
    datamodule.predict_root, datamodule.predict_split = datamodule.train_root, None
    datamodule.setup("predict")
    batch = next(iter(datamodule.predict_dataloader()))
    with torch.no_grad():
        x = datamodule.aug(batch)["image"]
        wanted = _maps(list(task.model.encoder(x))[-1])
    files = {name: sorted((tuned.folder / name).iterdir()) for name in ("mosaic", "DEM")}
    scenes = [word for name, two in files.items() for word in ("--scene", f"{name}={two[0]},{two[1]}")]
    got = _one(tmp_path / "out", *scenes, model=tuned.checkpoint)
    np.testing.assert_allclose(got, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


LEFT, TOP = 600_000, 5_300_040
NAME = "S2B_MSIL2A_20230612T102609_R108_T32TPT_20230612T150000"


def test_an_area_from_a_catalogue(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    ground = Ground(tmp_path / "world")
    ground.s2(NAME, "2023-06-12T10:26:09Z", LEFT, TOP, 240, swath=180)
    ground.save()
    area = aoi(ground.root / "field.geojson", HOME, (LEFT + 300, TOP - 900, LEFT + 1200, TOP - 400))
    monkeypatch.setattr(mosaic.Feed, "remove", lambda feed: None)
    place = ["--stac", ground.root / "catalog.json", "--catalogue", "planetary_computer", "--date",
             "2023-06-01/2023-06-30", "--aoi", area, "--out", tmp_path / "a"]  # fmt: skip
    assert "--stac needs the modalities to read" in refused(capsys, ["embed", "--model", NANO, *place])
    assert _embed("--modality", "S2L2A", "--format", "parquet", *place) == 0
    table = geopandas.read_parquet(tmp_path / "a" / "field_32632_embedding.parquet")
    assert table.crs.to_epsg() == 32632
    assert str(table.date.iloc[0]) == "2023-06-12"
    seen = tmp_path / "a" / "field_sources" / "field_32632" / "S2L2A" / "field_32632.vrt"
    whole = tmp_path / "whole.tif"
    with rasterio.open(seen) as file, rasterio.open(whole, "w", **file.profile | {"driver": "GTiff"}) as copy:
        copy.write(file.read())
        copy.descriptions = ENTRY.band_names
    again = _one(tmp_path / "b", whole, "--modality", "S2L2A")
    np.testing.assert_array_equal(np.stack(table.vector), again[:, table.row, table.column].T)
    assert len(table) == (~np.isnan(again[0])).sum() > 50


LATER = NAME.replace("0612", "0712")


def test_an_area_on_two_dates(tmp_path: Path, monkeypatch: Any) -> None:
    """The vectors are those of files of both dates."""
    ground = Ground(tmp_path / "world")
    ground.s2(NAME, "2023-06-12T10:26:09Z", LEFT, TOP, 240, swath=80)
    ground.s2(LATER, "2023-07-12T10:26:09Z", LEFT, TOP, 240, baseline="03.01")
    ground.save()
    with rasterio.open(ground.root / "s2" / LATER / "B08.tif", "r+") as file:
        file.write(file.read() + 1000)
    area = aoi(ground.root / "field.geojson", HOME, (LEFT + 300, TOP - 900, LEFT + 1200, TOP - 400))
    monkeypatch.setattr(mosaic.Feed, "remove", lambda feed: None)
    ranges = "2023-06-01/2023-06-30,2023-07-01/2023-07-31"
    place = ["--stac", ground.root / "catalog.json", "--catalogue", "planetary_computer", "--date", ranges]
    words = ["--modality", "S2L2A", "--crop", SIDE]
    both = _one(tmp_path / "a", *place, "--aoi", area, *words, "--temporal_pooling", "concat")
    files = []
    for number in (1, 2):
        folder = tmp_path / "a" / "field_sources" / f"date_{number}" / "field_32632" / "S2L2A"
        (tmp_path / str(number)).mkdir()
        files.append(tmp_path / str(number) / "field.tif")
        (path,) = folder.glob("*.vrt")
        with rasterio.open(path) as file, rasterio.open(
            files[-1], "w", **file.profile | {"driver": "GTiff"}
        ) as copy:  # fmt: skip
            copy.write(file.read())
            copy.descriptions = ENTRY.band_names
    again = _one(tmp_path / "b", ",".join(map(str, files)), *words, "--temporal_pooling", "concat")
    np.testing.assert_array_equal(both, again)
    first, second = both[:DIM], both[DIM:]
    same = (first == second).all(axis=0).all(axis=0)  # a date without data in a window takes the vectors of the other
    assert same.tolist() == [False] * 8 + [True] * 4
    mean = _one(tmp_path / "c", *place, "--aoi", area, *words)
    np.testing.assert_allclose(mean, (first + second) / 2, atol=2e-5)
    with rasterio.open(next((tmp_path / "c").glob("*.tif"))) as file:
        assert file.tags()["dates"] == "2023-06-12, 2023-07-12"
