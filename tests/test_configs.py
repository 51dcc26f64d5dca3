"""Every configuration that ships parses and builds; so do those that TerraMind's authors publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rasterio.transform import from_origin
from terratorch.cli_tools import build_lightning_cli

from terramind_plugin.raster.writer import write_geotiff

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DETECTION = ROOT / "configs" / "vhr10_detection.yaml"
PUBLISHED = ROOT / "tests" / "conf" / "published_sen1floods11.yaml"


def build(path: Path, *overrides: str):
    """Return the CLI object TerraTorch makes of a configuration, without running it."""
    return build_lightning_cli(["--config", str(path), *overrides], run=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_says_how_to_run_it(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("Command:", "Hardware:", "Expect:", path.name):
        assert word in header


@pytest.mark.parametrize("path", [path for path in CONFIGS if path != DETECTION], ids=lambda path: path.stem)
def test_configuration_builds(path, monkeypatch, tmp_path):
    """Builds on the meta device, so that the large sizes cost nothing, and from another folder."""
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        cli = build(
            path,
            "--model.init_args.model_args.backbone_pretrained=false",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.precision=32",
            "--trainer.logger=false",
        )
    backbone = cli.model.model.encoder
    backbone = getattr(backbone, "encoder", backbone) if type(backbone).__name__ == "TemporalWrapper" else backbone
    assert type(backbone).__module__.startswith("terramind_plugin")
    assert type(cli.datamodule).__module__.startswith("terramind_plugin")
    assert set(backbone.modalities) == {*cli.datamodule.modalities, cli.datamodule.positions} - {None}
    for spec in backbone.observed:
        assert spec.is_sequence or len(cli.datamodule.band_means[spec.name]) == spec.channels


def test_detection_configuration_builds():
    """Builds the tiny backbone: torchvision's detectors cannot be built on the meta device."""
    backbone = "--model.init_args.model_args.backbone"
    cli = build(DETECTION, f"{backbone}=terramind_v1_tiny", f"{backbone}_pretrained=false", "--trainer.logger=false",
                "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32")  # fmt: skip
    backbone = cli.model.model.torchvision_model.backbone.backbone
    assert type(backbone).__module__.startswith("terramind_plugin")
    (spec,) = backbone.observed
    assert spec.channels == len(cli.datamodule.aug.means) == cli.model.hparams["model_args"]["in_channels"]


@pytest.mark.parametrize("name", ["demo_flood", "demo_flood_tim"])
def test_demo_configuration_does_not_need_the_hub(name):
    from terramind_plugin.model.variants import VARIANTS

    arguments = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["model"]["init_args"]["model_args"]
    ships = VARIANTS[arguments["backbone"].removesuffix("_tim")].hub_repo is None
    assert ships or arguments["backbone_pretrained"] is False


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A Hugging Face cache that holds random weights under the published names of the tiny model."""
    from huggingface_hub import constants

    from terramind_plugin.builders import build_backbone
    from terramind_plugin.model.variants import VARIANTS

    variant = VARIANTS["terramind_v1_tiny"]
    weights = build_backbone(variant.name, ["S2L2A", "S2L1C", "RGB", "S1GRD", "S1RTC", "DEM"]).state_dict()
    folder = tmp_path / "hub" / f"models--{variant.hub_repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    torch.save({**weights, "decoder.0.norm1.weight": torch.zeros(192)}, snapshot / variant.hub_file)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def published(tmp_path) -> Path:
    """The published configuration with data.class_path changed, and nothing else."""
    text = PUBLISHED.read_text()
    theirs = "class_path: terratorch.datamodules.GenericMultiModalDataModule"
    assert text.count(theirs) == 1
    path = tmp_path / "published.yaml"
    path.write_text(text.replace(theirs, "class_path: terramind_plugin.TerraMindDataModule"))
    return path


def test_published_configuration_builds_with_one_line_changed(published):
    cli = build(published, "--model.init_args.model_args.backbone_pretrained=false", "--trainer.accelerator=cpu")
    assert type(cli.model.model.encoder).__name__ == "TerraMindBackbone"
    assert cli.datamodule.train_transform is not None
    assert cli.datamodule.rgb_indices == {"S2L1C": [3, 2, 1]}


def test_published_configuration_trains_on_simulated_chips(published, tmp_path, monkeypatch, hub_cache):
    from terramind_plugin.simulation.dataset import simulate

    simulate(tmp_path / "sen1floods11_v1.1", chips=14, size=64)
    monkeypatch.chdir(tmp_path)
    cli = build(
        published,
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--data.init_args.num_workers=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.callbacks=[]",
    )
    before = [p.clone() for p in cli.model.model.encoder.parameters()]
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.global_step == 1
    assert torch.isfinite(cli.trainer.callback_metrics["val/loss"])
    assert all(torch.equal(a, b) for a, b in zip(before, cli.model.model.encoder.parameters(), strict=True))


def write_chips(folder: Path, names: list[str], bands: int, scale: float, classes: int, size: int = 64) -> None:
    """Write random chips and masks with the file names of the HLS data sets."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in names:
        image = (rng.random((bands, size, size)) * scale).astype(np.float32)
        mask = rng.integers(0, classes, (1, size, size)).astype(np.int16)
        for suffix, values in (("_merged.tif", image), (".mask.tif", mask)):
            write_geotiff(folder / f"{name}{suffix}", values, crs="EPSG:32610", transform=from_origin(5e5, 4e6, 30, 30))


def write_splits(folder: Path, splits: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True)
    for name, ids in splits.items():
        (folder / f"{name}.txt").write_text("\n".join(ids) + "\n")


def train_one_epoch(path: Path, *overrides: str) -> None:
    """Run a configuration for an epoch and check that it trained and validated with finite losses."""
    cli = build(
        path,
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.max_epochs=1",
        "--trainer.precision=32",
        "--trainer.logger=false",
        "--data.init_args.num_workers=0",
        "--data.init_args.batch_size=2",
        *overrides,
    )
    # The others write: pictures, checkpoints, progress.
    cli.trainer.callbacks = [c for c in cli.trainer.callbacks if type(c).__name__ in ("FiniteLoss", "BackboneUnfreeze")]
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.global_step > 0
    assert torch.isfinite(cli.trainer.callback_metrics["val/loss"])


BURN_SCARS = [ROOT / "tests" / "conf" / "published_burnscars.yaml", ROOT / "configs" / "burnscars_base.yaml"]


@pytest.mark.parametrize("path", BURN_SCARS, ids=["published", "ours"])
def test_burn_scars_configuration_trains(path, tmp_path, monkeypatch, hub_cache):
    write_chips(tmp_path / "hls_burn_scars" / "data", ["a", "b", "c", "d"], bands=6, scale=1, classes=2)
    write_splits(tmp_path / "hls_burn_scars" / "splits", {"train": ["a", "b"], "val": ["c"], "test": ["d"]})
    monkeypatch.chdir(tmp_path)
    train_one_epoch(path, "--model.init_args.model_args.backbone=terramind_v1_tiny")


def test_multitemporal_crop_configuration_trains(tmp_path, monkeypatch, hub_cache):
    for folder, names in (("training_chips", ["chip_1", "chip_2"]), ("validation_chips", ["chip_3"])):
        write_chips(tmp_path / "multi-temporal-crop-classification" / folder, names, bands=18, scale=1e4, classes=14)
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs" / "multitemporal_crop_base.yaml"
    train_one_epoch(path, "--model.init_args.model_args.backbone=terramind_v1_tiny")
