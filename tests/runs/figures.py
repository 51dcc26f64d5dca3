"""A logger that keeps figures."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure


class FigureLogger(Logger):
    """Takes figures as TensorBoard's logger does, and keeps them by tag."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, Figure] = {}

    @property
    def name(self) -> str:
        return "figures"

    @property
    def version(self) -> int:
        return 0

    @property
    def experiment(self) -> FigureLogger:
        return self

    def add_figure(self, tag: str, figure: Figure, global_step: int) -> None:
        self.figures[tag] = figure

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass
