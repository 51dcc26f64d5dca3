"""A cache is not part of the model: a checkpoint made with one is tested with another or none, on its own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from terramind_plugin.backbones.cache.store import Store
from tests.runs.running import Runner, fit_once


def _thoughts(cache: Path) -> int:
    store = Store(cache / "tim.sqlite3", 10**9)
    try:
        return store.size()
    finally:
        store.close()


def test_a_checkpoint_is_tested_with_another_cache(
    runner: Runner, segmentation: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tim, cache = {"model_args.backbone": "terramind_v1_tiny_tim"}, "model_args.backbone_tim_cache"
    fitted = fit_once(segmentation, tmp_path, {**tim, cache: str(tmp_path / "cache")})
    options = ["--ckpt_path", fitted.checkpoint]
    assert runner.terramind("test", tim, *options) == 0
    assert runner.terramind("test", {**tim, cache: str(tmp_path / "other")}, *options) == 0
    assert _thoughts(tmp_path / "other") > 0

    # A checkpoint with another generator has thoughts of its own in the same cache.
    content = torch.load(fitted.checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("sampler.model.mask_token"))
    content["state_dict"][name] += 1
    torch.save(content, tmp_path / "changed.ckpt")
    before = _thoughts(tmp_path / "other")
    for expected in (2 * before, 2 * before):  # the second time they are known
        words = ["--ckpt_path", tmp_path / "changed.ckpt"]
        assert runner.terramind("test", {**tim, cache: str(tmp_path / "other")}, *words) == 0
        assert _thoughts(tmp_path / "other") == expected
    assert "another model" not in capfd.readouterr().err
