"""Room for the checkpoints of a run."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from terramind_plugin.check.build import check_disk

EPOCHS = {"max_epochs": 40}


@pytest.mark.parametrize(
    ("options", "trainer", "copies"),
    [
        ({}, EPOCHS, 1),
        ({"save_last": True}, EPOCHS, 2),
        ({"save_top_k": 0, "save_last": True}, EPOCHS, 1),
        ({"save_top_k": 3}, EPOCHS, 3),
        ({"save_top_k": -1}, EPOCHS, 40),
        ({"save_top_k": -1, "every_n_epochs": 10, "save_last": True}, EPOCHS, 5),
        ({"save_top_k": -1, "every_n_train_steps": 50}, {"max_steps": 500}, 10),
        ({"save_top_k": -1}, {}, 1000),
    ],
)
@pytest.mark.parametrize("enough", [True, False])
def test_disk(
    options: dict[str, Any], trainer: dict[str, Any], copies: int, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = copies * 3 * 4 * 1000  # a weight and two numbers of AdamW, of four bytes each
    usage = namedtuple("usage", "free")(needed if enough else needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": options}
    (found,) = check_disk({"trainer": {"callbacks": [callback], **trainer}}, nn.Linear(100, 10, bias=False))
    assert found.verdict == ("ok" if enough else "error")
    assert f"; {copies} checkpoint{'' if copies == 1 else 's'} of " in found.seen


def test_a_cache_that_is_too_small_is_named(check: Any, sound: Any, tmp_path: Path) -> None:
    cache = tmp_path / "decoded"
    (small,) = check(sound, {"data.cache": str(cache), "data.cache_gib": 0.001})
    assert (small.check, small.verdict) == ("run: cache", "warning")
    # Twelve chips of 13 bands in float32 or int16, 2 in float32 and a label.
    assert "GiB, cache_gib is 0.001: the rest is not kept" in small.seen
    assert check(sound, {"data.cache": str(cache)}) == []
    assert not cache.exists()
    (wrong,) = check(sound, {"data.cache": str(next((sound.root / "splits").iterdir()))})
    assert "cache must be a folder, but" in wrong.seen
    (misspelt,) = check(sound, {"data.cache_gb": 3})
    assert "Did you mean 'cache_gib'?" in misspelt.seen
