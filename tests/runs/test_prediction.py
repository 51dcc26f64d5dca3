"""Prediction: files on the input's grid, with the right type, missing values, names and places."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from terramind_plugin.data.writer import NO_CLASS, choose_types, find_data
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.integration.lightning_cli import run
from terramind_plugin.simulation.dataset import chip_files

GRID = from_origin(300000, 5000000, 10, 10)


def _write(path: Path, array: np.ndarray, nodata: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": GRID, "dtype": array.dtype.name, "nodata": nodata}
    with rasterio.open(path, "w", count=len(array), height=array.shape[1], width=array.shape[2], **profile) as raster:
        raster.write(array)
    return path


def _chip(root: Path, name: str, size: tuple[int, int] = (64, 64), **radar: Any) -> tuple[Path, Path]:
    rng = np.random.default_rng(len(name))
    optical = rng.integers(100, 3000, (13, *size)).astype(np.uint16)
    backscatter = rng.normal(-15, 4, (2, *size)).astype(np.float32)
    return _write(root / "S2" / f"{name}_S2Hand.tif", optical), _write(root / "S1" / f"{name}_S1Hand.tif", backscatter)


def _roots(root: Path) -> dict[str, Any]:
    return {
        "data.predict_data_root": {"S2L1C": str(root / "S2"), "S1GRD": str(root / "S1")},
        "data.predict_split": ...,
    }


@pytest.fixture
def predict(runner: Any, fitted: Any, tmp_path: Path) -> Any:
    def predicted(changes: dict[str, Any] | None = None, *words: Any) -> Path:
        # By `terramind predict`: TerraTorch's own lets the checkpoint's hyper-parameters win over the configuration.
        out = tmp_path / "out"
        options = ["--ckpt_path", fitted.checkpoint, "--predict_output_dir", out, *words]
        runner.terratorch("predict", changes, *options, entry=lambda: run(sys.argv[1:]))
        return out

    return predicted


def test_files_lie_on_the_inputs_grid(predict: Any, scenes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = predict()
    assert f"1 prediction in {out}" in capsys.readouterr().out
    (name,) = scenes.splits["test"]
    (path,) = out.rglob("*")
    assert path.name == f"{name}_S2Hand_pred.tif"
    with rasterio.open(path) as result, rasterio.open(chip_files(scenes.root, name)["S2L1C"]) as source:
        assert (result.crs, result.transform, result.shape) == (source.crs, source.transform, source.shape)
        assert (result.count, result.dtypes, result.nodata) == (1, ("uint8",), NO_CLASS)
        assert result.descriptions == ("class",)
        assert result.tags()["class_0"] == "Land"
        assert result.tags()["class_1"] == "Water"
        assert len(set(list(result.colormap(1).values())[:2])) == 2
        assert set(np.unique(result.read())) <= {0, 1}


def test_probabilities_are_not_rounded(predict: Any, scenes: Any) -> None:
    out = predict({"model.output_on_inference": ["prediction", "probabilities"]})
    (name,) = scenes.splits["test"]
    assert {path.name for path in out.iterdir()} == {f"{name}_S2Hand_pred.tif", f"{name}_S2Hand_probabilities.tif"}
    with rasterio.open(out / f"{name}_S2Hand_probabilities.tif") as raster:
        probabilities = raster.read()
        assert raster.dtypes == ("float32", "float32")
        assert raster.descriptions == ("Land", "Water")
    with rasterio.open(out / f"{name}_S2Hand_pred.tif") as raster:
        assert np.array_equal(probabilities.argmax(0), raster.read(1))
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert len(np.unique(probabilities)) > 100


def test_pixels_without_data(predict: Any, tmp_path: Path) -> None:
    optical, radar = _chip(tmp_path, "a")
    with rasterio.open(optical) as raster:
        values = raster.read()
    values[:, :10] = 0
    values[4, 20:30] = 0  # dark in one band is not missing
    _write(optical, values, nodata=0)
    with rasterio.open(radar) as raster:
        backscatter = raster.read()
    backscatter[:, :5] = np.nan
    _write(radar, backscatter)
    changes = _roots(tmp_path) | {"model.output_on_inference": ["prediction", "probabilities"]}
    out = predict(changes)
    with rasterio.open(out / "a_S2Hand_pred.tif") as raster:
        classes = raster.read(1)
    assert (classes[:5] == NO_CLASS).all()
    assert (classes[5:] != NO_CLASS).all()
    with rasterio.open(out / "a_S2Hand_probabilities.tif") as raster:
        probabilities = raster.read()
    assert np.isnan(probabilities[:, :5]).all()
    assert np.isfinite(probabilities[:, 5:]).all()


def test_a_mask_in_the_file_counts(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.full((2, 20, 30), 7, np.uint16))
    assert find_data({str(path)}, (20, 30))[0].all()
    mask = np.full((20, 30), 255, np.uint8)
    mask[:, 10] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as raster:
        raster.write_mask(mask)
    assert (find_data({str(path)}, (20, 30))[0] == (mask > 0)).all()
    other = _write(tmp_path / "b.tif", np.full((1, 20, 30), np.nan, np.float32))
    assert not find_data({str(other)}, (20, 30))[0].any()
    assert (find_data({str(path), str(other)}, (20, 30))[0] == (mask > 0)).all()


@pytest.mark.parametrize(
    ("asked", "classes", "probabilities"), [("uint16", "uint16", "float32"), ("float64", "float64", "float64")]
)
def test_the_type_that_is_asked_for(predict: Any, scenes: Any, asked: str, classes: str, probabilities: str) -> None:
    out = predict({"model.output_on_inference": ["prediction", "probabilities"]}, "--out_dtype", asked)
    (name,) = scenes.splits["test"]
    for what, dtype in (("pred", classes), ("probabilities", probabilities)):
        with rasterio.open(out / f"{name}_S2Hand_{what}.tif") as raster:
            assert set(raster.dtypes) == {dtype}
            assert np.isnan(raster.nodata) if dtype.startswith("float") else raster.nodata == NO_CLASS
            assert np.isfinite(raster.read()).all()
            assert len(np.unique(raster.read())) > 1


def test_types_to_choose_from() -> None:
    assert choose_types("int16") == choose_types("uint8") == ("uint8", "float32")
    assert choose_types("float32") == ("float32", "float32")
    with pytest.raises(ConfigError, match="--out_dtype int8: a map of classes with 255 for no data can be uint8,"):
        choose_types("int8")


def test_the_data_module_brings_the_writer(predict: Any) -> None:
    out = predict({"trainer.callbacks": [{"class_path": "terramind_plugin.FiniteLoss"}]})
    (path,) = out.iterdir()
    with rasterio.open(path) as raster:
        assert (raster.dtypes, raster.nodata, raster.compression.value) == (("uint8",), NO_CLASS, "DEFLATE")


def test_a_folder_of_chips_and_nothing_else(predict: Any, tmp_path: Path) -> None:
    """No labels, no folders or splits for training; a split says which chips."""
    for name in "ab":
        _chip(tmp_path, name)
    (tmp_path / "split.txt").write_text("b\n")
    nothing = [f"data.{split}_split" for split in ("train", "val", "test")]
    nothing += ["data.data_root", "data.label_data_root", "data.label_grep"]
    changes = _roots(tmp_path) | dict.fromkeys(nothing, ...)
    out = predict(changes | {"data.predict_split": str(tmp_path / "split.txt")})
    assert [path.name for path in out.iterdir()] == ["b_S2Hand_pred.tif"]


def test_equal_names_in_folders_stay_apart(predict: Any, tmp_path: Path) -> None:
    # TerraTorch finds samples below a folder by a prefix.
    for part in ("one", "two"):
        for kind in ("S2", "S1"):
            source = _chip(tmp_path / "chips", "a")[0 if kind == "S2" else 1]
            target = tmp_path / kind / part / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    out = predict(_roots(tmp_path) | {"data.prefix": "*/"})
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.tif"))
    assert found == ["one/a_S2Hand_pred.tif", "two/a_S2Hand_pred.tif"]


def test_any_size_one_by_one(predict: Any, tmp_path: Path) -> None:
    _chip(tmp_path, "odd", (100, 72))
    _chip(tmp_path, "even", (64, 96))
    out = predict(_roots(tmp_path) | {"data.batch_size": 1})
    for name, size in (("odd", (100, 72)), ("even", (64, 96))):
        with rasterio.open(out / f"{name}_S2Hand_pred.tif") as raster:
            assert raster.shape == size
            assert raster.transform == GRID
            assert (raster.read() != NO_CLASS).all()


def test_tiles_and_missing_modalities(predict: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _chip(tmp_path, name, (128, 160))
    (tmp_path / "S1" / "b_S1Hand.tif").unlink()
    (tmp_path / "S2" / "c_S2Hand.tif").unlink()
    tiles = {"crop": 64, "stride": 48, "delta": 4, "batch_size": 5}
    changes = _roots(tmp_path) | {
        "data.allow_missing_modalities": True,
        "data.batch_size": 3,
        "model.tiled_inference_parameters": tiles,
        "model.output_on_inference": "probabilities",
    }
    out = predict(changes)
    assert sorted(path.name for path in out.iterdir()) == [
        "a_S2Hand_probabilities.tif", "b_S2Hand_probabilities.tif", "c_S1Hand_probabilities.tif",
    ]  # fmt: skip
    together = {path.name: _read(path) for path in out.iterdir()}
    assert all(np.isfinite(values).all() and values.shape == (2, 128, 160) for values in together.values())
    # One at a time nothing can be mixed up between samples.
    again = predict(changes | {"data.batch_size": 1}, "--output_file_prefix", "single")
    for name, values in together.items():
        assert np.allclose(values, _read(again / f"single_{name}"), atol=1e-4)


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def test_terratorchs_own_command_writes_the_same(predict: Any, runner: Any, fitted: Any, tmp_path: Path) -> None:
    (ours,) = predict().iterdir()
    other = tmp_path / "other"
    runner.terratorch("predict", None, "--ckpt_path", fitted.checkpoint, "--predict_output_dir", other, cwd=tmp_path)
    assert [path.name for path in other.iterdir()] == [ours.name]
    assert (other / ours.name).read_bytes() == ours.read_bytes()


def test_without_a_folder_to_write_to(runner: Any, fitted: Any) -> None:
    with pytest.raises(ConfigError, match="--predict_output_dir"):
        runner.terratorch("predict", None, "--ckpt_path", fitted.checkpoint)


def test_a_transform_that_changes_the_size(predict: Any, tmp_path: Path) -> None:
    _chip(tmp_path, "a", (96, 96))
    crop = [{"class_path": "CenterCrop", "init_args": {"height": 64, "width": 64}}, {"class_path": "ToTensorV2"}]
    with pytest.raises(DataError, match="test_transform changes the size"):
        predict(_roots(tmp_path) | {"data.test_transform": crop})


def test_no_half_written_file_is_left(predict: Any, scenes: Any) -> None:
    out = predict()
    assert all(path.suffix == ".tif" and not path.name.startswith(".") for path in out.iterdir())
