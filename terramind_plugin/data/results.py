"""Predictions for whole images as a table, and results that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.system.files import write_rows

BOX = ("xmin", "ymin", "xmax", "ymax")
"""Header of a detected box, in pixels of the image."""


class FiniteResults:
    """Mask of the values of the last result that are not finite; argmax would turn NaN scores into a class.

    Args:
        task: A task of TerraTorch, which is watched until `stop`.
    """

    def __init__(self, task: Any) -> None:
        self.wrong: Tensor | None = None
        """Boolean [B, H, W] or [B], True where a score of the last batch is not finite; None before the first batch."""
        self._stop: Callable[[], None]
        if hasattr(task, "select_classes"):
            # The blended result: the model itself sees only tiles.
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
        """Stop watching the task."""
        self._stop()


def describe_files(counts: dict[Path | str, int], what: str) -> str:
    """Return a sentence that counts pixels and names the file with most of them.

    Args:
        counts: Number of pixels by file, none of them 0.
        what: Predicate of the sentence.
    """
    worst = max(counts, key=lambda path: counts[path])
    total = sum(counts.values())
    return (
        f"{total} pixel{'s' if total > 1 else ''} of {len(counts)} file{'s' if len(counts) > 1 else ''}, most of them "
        f"({counts[worst]}) in {worst}, {what}"
    )


class PredictionTable:
    """Collects predictions for whole images, and writes them as a CSV."""

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []
        self._are_classes = True
        self._boxes: list[list[Any]] | None = None

    def add(self, name: str, values: Tensor, *, lost: bool) -> None:
        """Add the row of an image.

        Args:
            name: Name of the file.
            values: Class id [], or values of any shape.
            lost: Whether the values are invalid; the row is then empty.
        """
        self._are_classes &= not values.is_floating_point() and values.numel() == 1
        self._rows.append([name, *(("",) * values.numel() if lost else _texts(values))])

    def add_boxes(self, names: Sequence[str], predictions: Sequence[Mapping[str, Tensor]]) -> None:
        """Add a row for each detected box.

        Args:
            names: Name of each image's file.
            predictions: For each image 'boxes' [boxes, 4], 'labels' [boxes] and 'scores' [boxes].
        """
        self._boxes = self._boxes if self._boxes is not None else []
        for index, found in enumerate(predictions):
            name = str(names[index]) if index < len(names) else str(index)
            for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
                self._boxes.append([name, *_texts(box), int(label), *_texts(score)])

    def write(self, path: Path, class_names: Sequence[str], var_names: Sequence[str]) -> None:
        """Write the table, if anything was added.

        Args:
            path: CSV to write.
            class_names: Names of the classes; may be empty.
            var_names: Names of the values of a regression; may be empty.
        """
        if self._boxes is not None:
            header = ["file", *BOX, "class", *(["class_name"] if class_names else []), "score"]
            write_rows(path, [header, *([*row[:6], *_name(row[5], class_names), row[6]] for row in self._boxes)])
        if not self._rows:
            return
        count = len(self._rows[0]) - 1
        if self._are_classes:
            header = ["file", "class", *(["class_name"] if class_names else [])]
            write_rows(path, [header, *([*row, *_name(row[1], class_names)] for row in self._rows)])
            return
        names = next((list(names) for names in (class_names, var_names) if len(names) == count), None)
        names = names or (["value"] if count == 1 else [f"value_{index}" for index in range(count)])
        write_rows(path, [["file", *names], *self._rows])


def _texts(values: Tensor) -> list[str]:
    """Return numbers with as many digits as their type has."""
    numbers = values.detach().cpu()
    return [str(number) for number in (numbers.float() if numbers.is_floating_point() else numbers).numpy().flatten()]


def _name(label: Any, class_names: Sequence[str]) -> list[str]:
    """Return a column with the name of a class, or no column if there are no names."""
    if not class_names:
        return []
    return [class_names[int(label)] if label != "" and int(label) < len(class_names) else ""]


def is_detection(prediction: Any) -> bool:
    """Return whether a task predicts boxes: a dict with 'boxes', 'labels' and 'scores' for each image."""
    return isinstance(prediction, list) and all(isinstance(found, Mapping) and "boxes" in found for found in prediction)
