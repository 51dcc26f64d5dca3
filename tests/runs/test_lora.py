"""Adapters through fit, test, predict, resumption and merging."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.builders import build_backbone, build_tim
from tests.runs.real_chips import needs_chips
from tests.runs.running import Fitted, Runner, fit_once

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "target": "attention"}
ADAPTERS = 12 * 4 * ((192 + 576) + (192 + 192))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of weights as they are published."""
    path = tmp_path_factory.mktemp("base") / "base.pt"
    torch.save(build_backbone("terramind_v1_tiny", ["S2L1C", "S1GRD"]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def changes(base: Path) -> dict[str, Any]:
    return {
        "model_args.backbone_ckpt_path": str(base),
        "model_args.backbone_lora": LORA,
        "model.freeze_backbone": True,
        "model.optimizer": "AdamW",
    }


@pytest.fixture(scope="module")
def adapted(segmentation: dict[str, Any], changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Return one epoch of training with adapters and, as users do, with freeze_backbone."""
    return fit_once(segmentation, tmp_path_factory.mktemp("lora"), changes)


def _metrics(cli: Any) -> dict[str, float]:
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.startswith("test/")}


def _state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_only_adapters_and_head_train(adapted: Fitted, base: Path) -> None:
    backbone = adapted.cli.model.model.encoder
    assert isinstance(backbone, TerraMindBackbone)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == ADAPTERS
    assert any(p.any() for name, p in backbone.named_parameters() if "lora_B" in name)
    stored = torch.load(base, weights_only=True)
    own = {name.replace(".base_layer", ""): value for name, value in backbone.named_parameters()}
    for name, value in stored.items():
        if name in own:
            assert torch.equal(own[name], value), name


def test_the_checkpoint_holds_what_trains(adapted: Fitted, fitted: Fitted, base: Path) -> None:
    content = torch.load(adapted.checkpoint, weights_only=True)
    encoder = {name for name in content["state_dict"] if name.startswith("model.encoder.")}
    assert encoder == {
        *(f"model.encoder.{name}" for name, p in adapted.cli.model.model.encoder.named_parameters() if p.requires_grad),
        "model.encoder.base_sha256",
    }
    trained = sum(p.requires_grad for p in adapted.cli.model.parameters())
    assert len(content["optimizer_states"][0]["state"]) == trained
    # Adapter, head and two moments of each, and names: far below the base alone.
    numbers = sum(p.numel() for p in adapted.cli.model.parameters() if p.requires_grad)
    assert adapted.checkpoint.stat().st_size < 3 * 4 * numbers + 400_000
    assert adapted.checkpoint.stat().st_size < base.stat().st_size / 4 < fitted.checkpoint.stat().st_size


def test_test_and_predict(runner: Runner, adapted: Fitted, changes: dict[str, Any], tmp_path: Path) -> None:
    cli = runner.terratorch("test", changes, "--ckpt_path", adapted.checkpoint)
    assert _metrics(cli)["test/loss"] > 0
    for name, value in _state(adapted.checkpoint).items():
        if "lora_" in name:
            assert torch.equal(cli.model.state_dict()[name], value)
    assert runner.terramind("test", changes, "--ckpt_path", adapted.checkpoint) == 0
    words = ["--ckpt_path", adapted.checkpoint, "--predict_output_dir", tmp_path / "out"]
    assert runner.terramind("predict", changes, *words) == 0
    assert list((tmp_path / "out").iterdir())


def test_training_goes_on(runner: Runner, adapted: Fitted, changes: dict[str, Any]) -> None:
    longer = {**changes, "trainer.max_epochs": 2}
    cli = runner.terratorch("fit", longer, "--ckpt_path", adapted.checkpoint)
    assert cli.trainer.global_step == 2 * adapted.cli.trainer.global_step
    assert cli.trainer.callback_metrics["train/loss"].isfinite()


def test_another_base_is_refused(
    runner: Runner, adapted: Fitted, changes: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pt"
    torch.manual_seed(1)  # the base may have been drawn from the seed that every test starts from
    torch.save(build_backbone("terramind_v1_tiny", ["S2L1C", "S1GRD"]).state_dict(), other)
    wrong = {**changes, "model_args.backbone_ckpt_path": str(other)}
    assert runner.terramind("test", wrong, "--ckpt_path", adapted.checkpoint) == 2
    message = capfd.readouterr().err.rpartition("terramind: ")[2]
    assert "adapters to other weights" in message
    assert len(set(re.findall(r"[0-9a-f]{64}", message))) == 2


def test_merged(
    runner: Runner, adapted: Fitted, changes: dict[str, Any], base: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from terramind_plugin.cli import main

    merged = tmp_path / "merged.ckpt"
    assert main(["merge", "--model", str(adapted.checkpoint), "--out", str(merged)]) == 0
    assert "24 adapters merged" in capfd.readouterr().out
    assert [path.name for path in tmp_path.glob("*.part")] == []
    want = _metrics(runner.terratorch("test", changes, "--ckpt_path", adapted.checkpoint))
    plain = runner.terratorch("test", None, "--ckpt_path", merged)
    assert _metrics(plain) == pytest.approx(want, abs=1e-4, nan_ok=True)
    assert set(_state(merged)) == set(plain.model.state_dict())
    theirs = torch.load(merged, weights_only=True)
    theirs["hyper_parameters"]["model_args"]["backbone"] = "terratorch_terramind_v1_tiny"
    torch.save(theirs, tmp_path / "theirs.ckpt")
    cli = runner.terratorch(
        "test", {"model_args.backbone": "terratorch_terramind_v1_tiny"}, "--ckpt_path", tmp_path / "theirs.ckpt"
    )
    assert not isinstance(cli.model.model.encoder, TerraMindBackbone)
    assert _metrics(cli) == pytest.approx(want, abs=1e-4, nan_ok=True)
    again = build_backbone("terramind_v1_tiny", ["S2L1C", "S1GRD"], ckpt_path=merged)
    assert torch.equal(again.encoder[0].attn.qkv.weight, plain.model.model.encoder.encoder[0].attn.qkv.weight)
    assert main(["merge", "--model", str(merged), "--out", str(tmp_path / "no.ckpt")]) == 2
    assert "nothing to merge" in capfd.readouterr().err
    assert not (tmp_path / "no.ckpt").exists()
    moved = ["--out", str(tmp_path / "moved.ckpt"), "--base", str(base)]
    assert main(["merge", "--model", str(adapted.checkpoint), *moved]) == 0
    for name, value in _state(tmp_path / "moved.ckpt").items():
        assert torch.equal(value, _state(merged)[name])


def test_one_key_from_the_command_line(runner: Runner, changes: dict[str, Any]) -> None:
    key = "--model.init_args.model_args.backbone_lora.rank"
    cli = runner.terratorch("fit", {**changes, "trainer.fast_dev_run": True}, key, "2")
    backbone = cli.model.model.encoder
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == ADAPTERS // 2


@pytest.mark.parametrize("replace", [None, "qkv"])
def test_peft_config_of_terratorch(runner: Runner, base: Path, replace: str | None) -> None:
    targets = ["q_linear", "v_linear"] if replace else ["qkv"]
    config = {"method": "LORA", "replace_qkv": replace, "peft_config_kwargs": {"r": 4, "target_modules": targets}}
    changes = {
        "model_args.backbone_ckpt_path": str(base), "model_args.peft_config": config,
        "model.freeze_backbone": True, "trainer.fast_dev_run": True,
    }  # fmt: skip
    cli = runner.terratorch("fit", changes)
    changed = [p for name, p in cli.model.model.encoder.named_parameters() if "lora_B" in name]
    assert changed
    assert all(p.requires_grad and p.any() for p in changed)


def test_adapters_after_the_decoder(runner: Runner, changes: dict[str, Any]) -> None:
    unfreeze = {"class_path": "terramind_plugin.BackboneUnfreeze", "init_args": {"epoch": 1}}
    for epochs, moved in ((1, False), (2, True)):
        cli = runner.terratorch("fit", {**changes, "trainer.callbacks": [unfreeze], "trainer.max_epochs": epochs})
        backbone = cli.model.model.encoder
        assert any(p.any() for name, p in backbone.named_parameters() if "lora_B" in name) is moved
        assert not backbone.encoder[0].attn.qkv.base_layer.weight.requires_grad


def test_thinking(
    runner: Runner, segmentation: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from terramind_plugin.cli import main

    base = tmp_path / "tim.pt"
    torch.save(build_tim("terramind_v1_tiny", ["S2L1C", "S1GRD"]).state_dict(), base)
    plain = {"model_args.backbone": "terramind_v1_tiny_tim"}
    changes = {**plain, "model_args.backbone_ckpt_path": str(base), "model_args.backbone_lora": LORA}
    fitted = fit_once(segmentation, tmp_path, changes)
    assert sum(p.numel() for p in fitted.cli.model.model.encoder.parameters() if p.requires_grad) == ADAPTERS
    assert not any("sampler" in name for name in _state(fitted.checkpoint))
    want = _metrics(runner.terratorch("test", changes, "--ckpt_path", fitted.checkpoint))
    assert main(["merge", "--model", str(fitted.checkpoint), "--out", str(tmp_path / "merged.ckpt")]) == 0
    got = _metrics(runner.terratorch("test", plain, "--ckpt_path", tmp_path / "merged.ckpt"))
    assert got == pytest.approx(want, abs=1e-4, nan_ok=True)


@needs_chips
def test_real_chip(
    runner: Runner, segmentation: dict[str, Any], spain: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    fitted = fit_once(segmentation, tmp_path, {**spain, **changes})
    assert fitted.cli.trainer.callback_metrics["train/loss"].isfinite()
    tested = runner.terratorch("test", {**spain, **changes}, "--ckpt_path", fitted.checkpoint)
    assert 0 <= tested.trainer.callback_metrics["test/mIoU"] <= 1


@pytest.mark.slow
def test_two_processes(runner: Runner, changes: dict[str, Any], tmp_path: Path) -> None:
    """Without find_unused_parameters: each trained weight has a gradient."""
    command = [Path(sys.executable).with_name("terramind"), "fit", "--config"]
    several = {**changes, "trainer.devices": 2, "trainer.strategy": "ddp"}
    result = subprocess.run(
        [*command, runner.write(several)], capture_output=True, text=True, timeout=540, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


def test_merging_with_the_configuration(
    runner: Runner, adapted: Fitted, changes: dict[str, Any], tmp_path: Path
) -> None:
    from terramind_plugin.cli import main

    bare = tmp_path / "bare.ckpt"
    torch.save({"state_dict": _state(adapted.checkpoint)}, bare)
    words = ["merge", "--model", str(bare), "--out", str(tmp_path / "merged.ckpt")]
    assert main(words) == 2
    assert main([*words, "--config", str(runner.write({"model_args.backbone": "terramind_v1_tiny"}))]) == 2
    assert main([*words, "--config", str(tmp_path / "none.yaml")]) == 2
    assert not (tmp_path / "merged.ckpt").exists()
    assert main([*words, "--config", str(runner.write(changes))]) == 0
    assert build_backbone("terramind_v1_tiny", ["S2L1C"], ckpt_path=tmp_path / "merged.ckpt")
