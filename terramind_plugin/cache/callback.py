"""What memos save, in a run's logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from terramind_plugin.cache.cache import Memo, Statistics
from terramind_plugin.cache.features import FeatureMemo

logger = logging.getLogger("terramind_plugin")

EPOCHS, SAMPLES = 3, 32
"""Epochs of training, and samples after the first epoch, after which a memo must have been of use."""
LEAST = 0.05
"""Share of hits, in all of them but the first, that is of use: with flips and turns (D4) it is about 0.18."""


class MemoLog(Callback):
    """Logs hit rate and saved seconds of memos, and lets one rest that training does not profit from.

    `TerraMindDataModule` adds it where a model has a memo. Random crops are never seen twice: then training goes on
    without looking up, while validation and test still do.
    """

    def __init__(self) -> None:
        self._epochs: dict[str, list[Statistics]] = {}
        self._judged: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell memos where the run's root is."""
        for memo in find_memos(pl_module):
            memo.root = Path(trainer.default_root_dir)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log an epoch's figures."""
        for memo in find_memos(pl_module):
            epoch, memo.training = memo.training, Statistics()
            evaluation, memo.evaluation = memo.evaluation, Statistics()
            figures = {
                "hit_rate": epoch.hit_rate,
                "evaluation_hit_rate": evaluation.hit_rate,
                "look_up_seconds": epoch.look_up_seconds + evaluation.look_up_seconds,
                "seconds_saved": memo.seconds_saved,
            }
            pl_module.log_dict(
                {f"memo/{memo.name}_{name}": float(value) for name, value in figures.items()}, rank_zero_only=True
            )
            if not memo.resting:
                self._judge(memo, epoch)

    def _judge(self, memo: Memo, epoch: Statistics) -> None:
        if memo.name in self._judged:
            return
        epochs = self._epochs.setdefault(memo.name, [])
        epochs.append(epoch)
        looked_up = sum(one.looked_up for one in epochs[1:])
        if len(epochs) < EPOCHS or looked_up < SAMPLES:
            return
        self._judged.add(memo.name)
        rate = sum(one.hits for one in epochs[1:]) / looked_up
        if rate < LEAST:
            memo.resting = True
            logger.warning(
                "Memo of %s: only %.1f %% of %d training samples were known after %d epochs, as with random crops. "
                "Training goes on without it; validation and test still use it.",
                memo.name,
                100 * rate,
                looked_up,
                len(epochs),
            )


def find_memos(model: nn.Module) -> Iterator[Memo]:
    """Yield the memos of a model's parts."""
    for module in model.modules():
        if isinstance(memo := getattr(module, "tim_memo", None), Memo):
            yield memo
        if isinstance(features := getattr(module, "feature_memo", None), FeatureMemo):
            yield features.memo
