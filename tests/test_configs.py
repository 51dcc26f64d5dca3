"""Every configuration that ships parses and builds; so does the one TerraMind's authors publish, with one line changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PUBLISHED = ROOT / "tests" / "conf" / "published_sen1floods11.yaml"


def build(path: Path, *overrides: str):
    """Return the CLI object TerraTorch makes of a configuration, without running it."""
    from terratorch.cli_tools import build_lightning_cli

    return build_lightning_cli(["--config", str(path), *overrides], run=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_says_how_to_run_it(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("Command:", "Hardware:", "Expect:", path.name):
        assert word in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
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
    assert set(backbone.modalities) == set(cli.datamodule.modalities)
    for spec in backbone.inputs:
        assert len(cli.datamodule.band_means[spec.name]) == spec.channels


def test_demo_configuration_does_not_need_the_hub():
    config = yaml.safe_load((ROOT / "configs" / "demo_flood.yaml").read_text())
    assert config["model"]["init_args"]["model_args"]["backbone_pretrained"] is False


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A Hugging Face cache that holds random weights under the published names of the tiny model."""
    from huggingface_hub import constants

    from terramind_plugin.backbones.build import build_backbone
    from terramind_plugin.variants import VARIANTS

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
    from terramind_plugin.data.simulate import simulate

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
