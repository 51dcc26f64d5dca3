"""Results of a task that are not finite, seen before a class is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class FiniteResults:
    """Notes where the last result of a task is not finite: of NaN scores argmax would make a class.

    Args:
        task: A task of TerraTorch; it is watched until `stop`.
    """

    def __init__(self, task: Any) -> None:
        self.wrong: Tensor | None = None
        """Boolean [B, H, W] or [B], True where a score of the last batch is not finite; None before the first."""
        self._stop: Callable[[], None]
        if hasattr(task, "select_classes"):
            # What tiles were blended to; the task itself sees the tiles.
            select = task.select_classes

            def watched(scores: Tensor) -> Any:
                self._look(scores)
                return select(scores)

            task.select_classes = watched
            self._stop = lambda: setattr(task, "select_classes", select)
        else:
            hook = task.register_forward_hook(lambda module, inputs, result: self._look(result))
            self._stop = hook.remove

    def _look(self, result: Any) -> None:
        scores = getattr(result, "output", result)
        if isinstance(scores, Tensor) and scores.is_floating_point():
            wrong = ~torch.isfinite(scores)
            self.wrong = wrong.any(dim=1) if wrong.ndim in (2, 4) else wrong

    def stop(self) -> None:
        """Leave the task alone again."""
        self._stop()


def describe_files(counts: dict[Path | str, int], what: str) -> str:
    """Return a sentence that counts pixels and names the file with most of them.

    Args:
        counts: Number of pixels by file, none of them 0.
        what: What is said of the pixels.
    """
    worst = max(counts, key=lambda path: counts[path])
    total = sum(counts.values())
    return (
        f"{total} pixel{'s' if total > 1 else ''} of {len(counts)} file{'s' if len(counts) > 1 else ''}, most of them "
        f"({counts[worst]}) in {worst}, {what}"
    )
