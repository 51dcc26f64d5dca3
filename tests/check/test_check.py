"""Mistakes are named; sound configurations and data raise no alarm."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from running import segmentation_config

YAML_MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "backbone key": ({"model_args.backbone_merge_metod": "mean"}, "yaml: keys", "backbone_merge_method"),
    "model key": ({"model_args.nekcs": []}, "yaml: keys", "necks"),
    "decoder key": ({"model_args.decoder_channel": [1]}, "yaml: keys", "decoder_channels"),
    "backbone": ({"model_args.backbone": "terramind_v1_tinny"}, "yaml: model", "Did you mean 'terramind_v1_tiny'"),
    "task key": ({"model.ignore_indx": 3}, "yaml: parsing", "ignore_indx"),
    "layer": ({"model_args.backbone_out_indices": [2, 5, 8, 12]}, "yaml: layers", "layer 12"),
    "modalities": ({"model_args.backbone_modalities": ["S2L1C"]}, "yaml: modalities", "S1GRD"),
    "classes": ({"model_args.num_classes": 3}, "yaml: classes", "num_classes 2, the model 3"),
    "scheduler": (
        {"lr_scheduler": {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/los"}}},
        "yaml: monitor",
        "Did you mean 'val/loss'",
    ),
    "gpu": ({"trainer.accelerator": "gpu"}, "run: hardware", "accelerator: auto"),
    "statistics of another": (
        {"data.means": {"S1GRD": [-10.93, -17.329]}, "data.stds": {"S1GRD": [4.391, 4.459]}},
        "values: S1GRD statistics",
        "those of S1RTC",
    ),
    "batch": ({"data.batch_size": 50}, "files: train split", "do not fill one batch of 50"),
    "no list": ({"data.test_split": ...}, "files: splits", "test has no list and takes every file"),
    "folder": ({"data.label_data_root": "/nowhere"}, "files: folders", "/nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", YAML_MISTAKES)
def test_a_mistake_in_the_configuration(mistake: str, sound: Any, check: Any) -> None:
    changes, where, text = YAML_MISTAKES[mistake]
    if mistake == "gpu" and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = [f for f in check(sound, changes) if f.check == where]
    assert found
    assert any(text in str(finding) for finding in found)


def test_a_sound_configuration_is_quiet(sound: Any, check: Any) -> None:
    assert check(sound) == []


def rewrite(path: Path, make: Callable[[np.ndarray], np.ndarray], **profile: Any) -> None:
    """Replace the values of a raster, and what else its profile says."""
    with rasterio.open(path) as raster:
        values, kept = make(raster.read()), raster.profile
    kept |= {"dtype": values.dtype.name, "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    kept = {key: value for key, value in kept.items() if key not in ("predictor", "blockxsize", "blockysize", "tiled")}
    with rasterio.open(path, "w", **{**kept, **profile}) as raster:
        raster.write(values)


def files(dataset: Any, kind: str) -> list[Path]:
    return sorted((dataset.root / "data" / f"{kind}Hand").iterdir())


def every(kind: str, make: Callable[[np.ndarray], np.ndarray], **profile: Any) -> Callable[[Any], None]:
    def spoil(dataset: Any) -> None:
        for path in files(dataset, kind):
            rewrite(path, make, **profile)

    return spoil


def one(kind: str, make: Callable[[np.ndarray], np.ndarray], **profile: Any) -> Callable[[Any], None]:
    return lambda dataset: rewrite(files(dataset, kind)[0], make, **profile)


def nan(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, np.nan)


def constant(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(values[:1], 1500), values[1:]])


def with_id(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) < 7, 9, values).astype(values.dtype)


def corner(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(values[:, :8]), values[:, 8:]], axis=1)


def truncate(dataset: Any) -> None:
    path = files(dataset, "S2L1C")[0]
    path.write_bytes(path.read_bytes()[:-4000])


def split_text(change_text: Callable[[str, str], str]) -> Callable[[Any], None]:
    def spoil(dataset: Any) -> None:
        folder = dataset.root / "splits"
        train, val = folder / "flood_train_data.txt", folder / "flood_valid_data.txt"
        train.write_bytes(change_text(train.read_text(), val.read_text()).encode())

    return spoil


def shifted(dataset: Any) -> None:
    with rasterio.open(files(dataset, "Label")[0], "r+") as raster:
        raster.transform = raster.transform @ rasterio.Affine.translation(5, 0)


def same_ground(dataset: Any) -> None:
    train, val = dataset.splits["train"][0], dataset.splits["valid"][0]
    data = dataset.root / "data"
    with rasterio.open(data / "S2L1CHand" / f"{train}_S2Hand.tif") as raster:
        place = {"crs": raster.crs, "transform": raster.transform}
    rewrite(data / "S2L1CHand" / f"{val}_S2Hand.tif", lambda values: values, **place)


S2, S1 = "S2L1C", "S1GRD"
ALPHABETICAL = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 8]
DATA_MISTAKES: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "0 to 1": (every(S2, lambda v: (v / 10000).astype(np.float32)), "values: S2L1C units", "not multiplied by 10000"),
    "0 to 1 in one file": (one(S2, lambda v: (v / 1e4).astype(np.float32)), "values: S2L1C units", "1 of 12 files"),
    "8 bits": (every(S2, lambda v: np.clip(v // 40, 1, 255).astype(np.uint8)), "values: S2L1C units", "8 bits"),
    "offset in one": (one(S2, lambda v: v + np.uint16(1000)), "values: S2L1C offset", "1 of 12 files have"),
    "offset lacks in one": (
        lambda d: [rewrite(p, lambda v: v + np.uint16(1000)) for p in files(d, S2)[1:]] and None,
        "values: S2L1C offset",
        "1 of 12 files have not",
    ),
    "offset in all": (every(S2, lambda v: v + np.uint16(1000)), "values: S2L1C offset", "none not"),
    "linear power": (every(S1, lambda v: 10 ** (v / 10)), "values: S1GRD units", "linear power"),
    "polarisations": (every(S1, lambda v: v[::-1]), "values: S1GRD polarisations", "swapped"),
    "alphabetical": (every(S2, lambda v: v[ALPHABETICAL]), "values: S2L1C band order", "alphabetical"),
    "reverse": (every(S2, lambda v: v[::-1]), "values: S2L1C band order", "reverse"),
    "all NaN": (one(S1, nan), "values: S1GRD gaps", "all NaN"),
    "constant band": (one(S2, constant), "values: S2L1C constant", "B01"),
    "zeros": (one(S2, corner), "values: S2L1C gaps", "0 in all bands"),
    "label id": (one("Label", with_id), "labels: ids", r"9 \(7 pixels\)"),
    "label nodata": (every("Label", lambda v: v, nodata=0), "labels: nodata", "also the id of a class"),
    "no label": (one("Label", lambda v: np.full_like(v, -1)), "labels: empty", "1 of 12"),
    "no water": (every("Label", lambda v: np.zeros_like(v)), "labels: train classes", r"class 1 \(Water\)"),
    "truncated": (truncate, "files: readable", "1 of"),
    "size of one": (one(S2, lambda v: v[:, :48]), "files: pairs differ in size", r"\[48, 64\]"),
    "sizes": (every(S2, lambda v: v[:, :, :50]), "files: train sizes", "16 does not divide"),
    "bands": (every(S2, lambda v: v[:12]), "files: S2L1C bands", "have not 13 bands"),
    "shifted label": (shifted, "files: pairs differ in place", "5 pixels apart"),
    "same ground": (same_ground, "files: overlap in space", "show the same ground"),
    "id without file": (split_text(lambda t, v: t + "Nowhere_1\n"), "files: train split", "Nowhere_1"),
    "two splits": (split_text(lambda t, v: t + v), "files: splits", "are in train and val"),
    "twice": (split_text(lambda t, v: t + t), "files: train split", "more than once"),
    "blank line": (split_text(lambda t, v: t + "\n\n"), "files: train split", "2 blank lines"),
    "Windows": (split_text(lambda t, v: t.replace("\n", "\r\n")), "files: train split", "Windows line ends"),
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_a_mistake_in_the_data(mistake: str, chips: Any, check: Any) -> None:
    spoil, where, text = DATA_MISTAKES[mistake]
    spoil(chips)
    found = [f for f in check(chips) if f.check == where]
    assert found
    assert any(re.search(text, str(finding)) for finding in found)


def test_a_rare_class_under_a_loss_that_does_not_see_it(chips: Any, check: Any) -> None:
    rare = np.zeros((1, 64, 64), np.int16)
    rare[0, :8, :8] = 1
    every("Label", lambda v: rare)(chips)
    (found,) = [f for f in check(chips) if f.check == "labels: balance"]
    assert found.verdict == "note"
    assert "98.44% class 0 (Land), 1.56% class 1 (Water)" in found.seen
    assert "class_weights: [0.22, 1.78]" in found.advice
    assert check(chips, {"model.loss": "dice"}) == check(chips, {"model.class_weights": [0.2, 1.8]}) == []


@pytest.mark.parametrize("declared", [-1000, 0, None])
def test_an_offset_in_the_files(declared: int | None, chips: Any, check: Any) -> None:
    every(S2, lambda v: v + np.uint16(1000))(chips)
    found = check(chips, {} if declared is None else {"data.offsets": {S2: declared}})
    assert [f.check for f in found if f.check.startswith("values")] == (
        ["values: S2L1C offset"] if declared is None else []
    )
    assert all("offsets: {S2L1C: -1000}" in f.advice for f in found)


@pytest.mark.parametrize("declared", [-1000, 0])
def test_no_offset_in_the_files(declared: int, sound: Any, check: Any) -> None:
    found = [f for f in check(sound, {"data.offsets": {S2: declared}}) if f.check == "values: S2L1C offset"]
    assert [f.verdict for f in found] == (["error"] if declared else [])
    assert all("12 of 12 files have not the offset of +1000, but offsets adds -1000" in f.seen for f in found)


@pytest.mark.parametrize(("words", "status"), [((), 0), (("--strict",), 0)])
def test_exit_status_of_sound_data(words: tuple[str, ...], status: int, sound: Any, tmp_path: Path) -> None:
    assert _main(sound, tmp_path, words) == status


def test_exit_status_of_warnings_and_errors(chips: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one(S1, nan)(chips)
    assert _main(chips, tmp_path) == 0
    assert _main(chips, tmp_path, ("--strict",)) == 1
    every(S1, lambda v: v[::-1])(chips)
    assert _main(chips, tmp_path) == 2
    out = capsys.readouterr().out
    assert "swapped" in out
    assert "1 errors, 1 warnings, 0 notes" in out


def _main(dataset: Any, folder: Path, words: tuple[str, ...] = ()) -> int:
    import yaml

    from terramind_plugin.cli import main

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(segmentation_config(dataset)))
    return main(["check", "-c", str(path), *words])
