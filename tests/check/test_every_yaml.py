"""Every configuration that ships or is published passes the check where its data are sound, and not where they lack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from terramind_plugin.check.run import check
from terramind_plugin.raster.writer import write_geotiff
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.simulation.dataset import chip_files, simulate
from tests.runs.made_chips import MAKE
from tests.runs.running import REPOSITORY

OURS = sorted((REPOSITORY / "configs").glob("*.yaml"))
CONF = REPOSITORY / "tests" / "conf"
BACKBONE = "--model.init_args.model_args.backbone"
PUBLISHED: dict[str, tuple[str, list[str]]] = {
    "sen1floods11 tiny": ("published_sen1floods11.yaml", []),
    "sen1floods11 small": ("published_sen1floods11.yaml", [f"{BACKBONE}=terramind_v1_small"]),
    "sen1floods11 base": ("published_sen1floods11.yaml", [f"{BACKBONE}=terramind_v1_base"]),
    "sen1floods11 TiM": ("published_sen1floods11.yaml", [f"{BACKBONE}=terramind_v1_tiny_tim"]),
    "burn scars": ("published_burnscars.yaml", []),
}
"""The configurations of TerraMind's authors: two are in tests/conf, the others differ in the backbone's name."""
THEIRS, OURS_TOO = (
    "class_path: terratorch.datamodules.GenericMultiModalDataModule",
    "terramind_plugin.TerraMindDataModule",
)
"""The line to change: with today's TerraTorch, its own data module does not start with this configuration."""
DATED = ("change_pairs_base", "flood_series_base")
FEW = ["--data.init_args.batch_size=2"]
"""Where a data set has fewer images than a batch of the configuration."""
CASES: dict[str, tuple[Path, list[str]]] = {
    **{path.stem: (path, FEW if path.stem in (*MAKE, *DATED) else []) for path in OURS},
    **{f"published {name}": (CONF / file, words) for name, (file, words) in PUBLISHED.items()},
}
QUICK = ("multitemporal_crop_base", "demo_flood", "demo_flood_series", "change_pairs_base", "published burn scars")
BIG = ("sen1floods11_large",)
"""Not tried: a step takes more memory than small machines have."""


def chips(folder: Path, names: list[str], bands: int, scale: float, classes: int) -> None:
    """Write random chips and masks with the file names of the HLS data sets, no two on the same ground."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in names:
        image = (rng.random((bands, 64, 64)) * scale).astype(np.float32)
        mask = rng.integers(0, classes, (1, 64, 64)).astype(np.int16)
        place = from_origin(5e5 + 3000 * len(list(folder.iterdir())), 4e6, 30, 30)
        for suffix, values in (("_merged.tif", image), (".mask.tif", mask)):
            write_geotiff(folder / f"{name}{suffix}", values, crs="EPSG:32610", transform=place)


def series(root: Path) -> None:
    """Write the data of the configurations with several dates."""
    made = simulate(root / "demo_output" / "series" / "data", chips=8, size=64, dates=4)
    for key, folder in (("S2L2A", "S2L2A"), ("S1GRD", "S1GRD"), ("DEM", "DEM"), ("label", "label")):
        (root / "series" / folder).mkdir(parents=True)
        for name in made.chip_ids:
            (root / "series" / folder / f"{name}.tif").symlink_to(chip_files(made.root, name)[key])
    for name in made.chip_ids:
        files = chip_files(made.root, name)
        with rasterio.open(files["S2L2A"]) as file:
            values, profile = file.read(), {**file.profile, "count": 12}
        for folder, first in (("before", 0), ("after", 12)):
            (root / "change_pairs" / folder).mkdir(parents=True, exist_ok=True)
            with rasterio.open(root / "change_pairs" / folder / f"{name}.tif", "w", **profile) as file:
                file.write(values[first : first + 12])
        (root / "change_pairs" / "label").mkdir(exist_ok=True)
        (root / "change_pairs" / "label" / f"{name}.tif").symlink_to(files["label"])
    for folder in ("series", "change_pairs"):
        (root / folder / "splits").mkdir()
        for split, ids in made.splits.items():
            (root / folder / "splits" / f"{split.replace('valid', 'val')}.txt").write_text("\n".join(ids))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small data sets where the configurations look for them."""
    root = tmp_path_factory.mktemp("home")
    simulate(root / "sen1floods11_v1.1", chips=14, size=64)
    (root / "demo_output").mkdir()
    (root / "demo_output" / "data").symlink_to(root / "sen1floods11_v1.1")
    (root / "demo_output" / "thinking").mkdir()
    (root / "demo_output" / "thinking" / "data").symlink_to(root / "sen1floods11_v1.1" / "data")
    (root / "demo_output" / "thinking" / "splits").symlink_to(root / "sen1floods11_v1.1" / "splits")
    chips(root / "hls_burn_scars" / "data", list("abcdefghijkl"), bands=6, scale=0.4, classes=2)
    (root / "hls_burn_scars" / "splits").mkdir()
    for split, ids in {"train": "abcdefgh", "val": "ij", "test": "kl"}.items():
        (root / "hls_burn_scars" / "splits" / f"{split}.txt").write_text("\n".join(ids))
    for part, letters in (("training_chips", "abcdefgh"), ("validation_chips", "ij")):
        names = [f"chip_{letter}" for letter in letters]
        chips(root / "multi-temporal-crop-classification" / part, names, bands=18, scale=4e3, classes=14)
    series(root)
    for make in MAKE.values():
        make(root)
    published = (CONF / "published_sen1floods11.yaml").read_text()
    assert published.count(THEIRS) == 1
    (root / "published_sen1floods11.yaml").write_text(published.replace(THEIRS, f"class_path: {OURS_TOO}"))
    return root


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in that folder, to which nothing may be added."""
    monkeypatch.chdir(home)
    before = sorted(os.listdir(home))
    yield home
    assert sorted(os.listdir(home)) == before


def stops(found: list[Finding]) -> list[str]:
    """Return errors, without those of random pixels and of one list for two splits."""
    return [
        str(finding)
        for finding in found
        if finding.verdict == "error" and not finding.check.startswith(("values", "labels", "files: splits"))
    ]


def started(name: str) -> tuple[Path, list[str]]:
    """Return a configuration and further options, with our data module where TerraTorch's does not start."""
    path, words = CASES[name]
    return (Path(path.name) if Path(path.name).exists() else path), words


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_sound_data(name: str, there: Any) -> None:
    path, words = started(name)
    assert stops(check(path, words, 4)) == []


def test_a_published_configuration_that_does_not_start(there: Any) -> None:
    found = check(CONF / "published_sen1floods11.yaml", [], 4)
    assert [finding.check for finding in found if finding.verdict == "error"] == ["yaml: data"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in BIG])
def test_steps(name: str, there: Any) -> None:
    path, words = started(name)
    tried = [finding for finding in check(path, words, 4, step=True) if finding.check == "run: step"]
    assert [finding.verdict for finding in tried] == ["ok"], tried


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "pretrain").glob("*.yaml")), ids=lambda p: p.stem)
def test_pretraining_without_its_data(path: Path, there: Any) -> None:
    found = check(path, [], 4, step=True)
    errors = [finding.check for finding in found if finding.verdict == "error"]
    assert "files: folders" in errors, "each folder that is not there is named"
    assert "run: step" in errors
    assert not any("Traceback" in finding.seen for finding in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_flood", "multitemporal_crop_base", "published burn scars"])
def test_data_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, words = CASES[name]
    found = check(path, words, 4, step=True)
    assert any(finding.verdict == "error" for finding in found)
