"""Log of the time that caches save."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from terramind_plugin.backbones.cache.cache import Cache, LookUps

logger = logging.getLogger("terramind_plugin")

EPOCHS, SAMPLES = 3, 32
"""Number of training epochs, and of samples after the first epoch, after which a useless cache is paused."""
LEAST = 0.05
"""Minimum share of hits after the first epoch of a useful cache; with D4 augmentation it is about 0.18."""


class CacheLog(Callback):
    """Logs hit rate and saved seconds of caches, and pauses a cache that training does not profit from.

    `TerraMindDataModule` adds it for a model with a cache. With random crops no sample comes twice: training then
    continues without look-ups, while validation and test still use the cache.
    """

    def __init__(self) -> None:
        self._epochs: dict[str, list[LookUps]] = {}
        self._judged: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the run's root of all caches."""
        for cache in find_caches(pl_module):
            cache.root = Path(trainer.default_root_dir)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log an epoch's figures."""
        for cache in find_caches(pl_module):
            epoch, cache.training = cache.training, LookUps()
            evaluation, cache.evaluation = cache.evaluation, LookUps()
            figures = {
                "hit_rate": epoch.hit_rate,
                "evaluation_hit_rate": evaluation.hit_rate,
                "look_up_seconds": epoch.look_up_seconds + evaluation.look_up_seconds,
                "seconds_saved": cache.seconds_saved,
            }
            pl_module.log_dict(
                {f"cache/{cache.name}_{name}": float(value) for name, value in figures.items()}, rank_zero_only=True
            )
            if not cache.paused:
                self._judge(cache, epoch)

    def _judge(self, cache: Cache, epoch: LookUps) -> None:
        """Pause a cache that had hardly any hits in its first epochs, or whose hits cost more than computing again."""
        if cache.name in self._judged:
            return
        epochs = self._epochs.setdefault(cache.name, [])
        epochs.append(epoch)
        looked_up = sum(one.looked_up for one in epochs[1:])
        if len(epochs) < EPOCHS or looked_up < SAMPLES:
            return
        self._judged.add(cache.name)
        hits = sum(one.hits for one in epochs[1:])
        rate = hits / looked_up
        cost = sum(one.look_up_seconds for one in epochs[1:]) / looked_up
        if rate < LEAST:
            cache.paused = True
            logger.warning(
                "Cache of %s: only %.1f %% of %d training samples were known after %d epochs, as with random crops. "
                "Training goes on without it; validation and test still use it.",
                cache.name,
                100 * rate,
                looked_up,
                len(epochs),
            )
        elif hits and (gain := sum(one.seconds_spared for one in epochs[1:]) / hits) < cost:
            cache.paused = True
            logger.warning(
                "Cache of %s: looking a sample up takes %.1f ms, computing it %.1f ms, so that no rate of hits pays. "
                "Training goes on without it; validation and test still use it.",
                cache.name,
                1000 * cost,
                1000 * gain,
            )


def find_caches(model: nn.Module) -> Iterator[Cache]:
    """Yield the caches of a model's parts."""
    for module in model.modules():
        for name in ("tim_cache", "feature_cache"):
            if isinstance(cache := getattr(module, name, None), Cache):
                yield cache
