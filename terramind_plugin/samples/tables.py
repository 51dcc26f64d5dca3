"""Tables of whole images: labels in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.errors import DataError, suggest
from terramind_plugin.files import write_rows
from terramind_plugin.samples.layout import read_table

BOX = ("xmin", "ymin", "xmax", "ymax")
"""Header of a detected box, in pixels of the image."""


@dataclass(frozen=True)
class LabelPlan:
    """What the rows of a table of labels have to be."""

    task: str | None = None
    """Task of the data module, e.g. 'classification'; None and others accept any numbers."""
    class_names: Sequence[str] = ()
    """Names of the classes; none if nobody says."""
    num_classes: int | None = None
    """Number of classes, if there are classes."""
    num_outputs: int | None = None
    """Number of values that a regression predicts, if known."""
    missing: float | None = None
    """Label that the task's loss ignores; None if labels may not be missing."""


class LabelTable:
    """Labels of whole images by sample id, checked.

    Args:
        path: CSV or Parquet file with the ids in its index (first column).
        plan: What it should hold.

    Raises:
        DataError: A column is missing, or too many are there; an id has several rows.
    """

    def __init__(self, path: str | os.PathLike[str], plan: LabelPlan) -> None:
        self.path = path
        self.plan = plan
        try:
            table = read_table(path)
        except Exception as error:  # pandas raises errors of many classes
            raise DataError(f"{path} cannot be read as a table of labels: {error}") from error
        repeated = table.index[table.index.duplicated()]
        if len(repeated):
            raise DataError(f"{path} has several rows for {repeated[0]!r}. Leave one row for each id.")
        self.columns = self._choose([str(name) for name in table.columns])
        self._table = table[[table.columns[list(map(str, table.columns)).index(name)] for name in self.columns]]

    def _choose(self, columns: list[str]) -> list[str]:
        """Return the columns that hold labels, in the order of the classes where they are named."""
        plan = self.plan
        names = list(map(str, plan.class_names))
        if not columns:
            raise DataError(f"{self.path} has no column of labels beside the ids in its first column.")
        if plan.task == "multilabel_classification":
            lacking = [name for name in names if name not in columns]
            if names and not lacking:
                return names
            if lacking and len(lacking) < len(names):
                raise DataError(
                    f"{self.path} has no column {lacking[0]!r}, expected one for each of class_names."
                    f"{suggest(lacking[0], columns)}"
                )
            expected, what = plan.num_classes, "one column of 0 and 1 for each class"
        elif plan.task == "classification":
            expected, what = 1, "one column with the class (several need task: multilabel_classification)"
        else:
            expected, what = plan.num_outputs, "one column for each predicted value (num_outputs)"
        if expected is not None and len(columns) != expected:
            shown = ", ".join(columns[:8])
            raise DataError(f"{self.path} has {len(columns)} columns beside the ids ({shown}), expected {what}.")
        return columns

    def check_ids(self, ids: Sequence[str], split: str) -> None:
        """Raise if samples have no row.

        Args:
            ids: Sample ids.
            split: Name of the split file, for the message.

        Raises:
            DataError: The message shows the first ones.
        """
        lacking = [name for name in ids if name not in self._table.index]
        if lacking:
            numbers = self._table.index.dtype.kind in "iuf"
            has = ", ".join(map(repr, self._table.index[:2].tolist()))
            raise DataError(
                f"{self.path} has no label for {len(lacking)} of {len(ids)} samples of {split}, e.g. {lacking[0]!r}; "
                f"it has {has}. Its first column must hold the ids as the split file has them, below one line of names."
                + (" Ids of digits alone are read as numbers: put a letter before them." if numbers else "")
            )

    def write_row_numbers(self, path: Path) -> None:
        """Write a table with the number of the row of each id."""
        write_rows(path, [["id", "row"], *([name, row] for row, name in enumerate(self._table.index))])

    def labels(self, row: int) -> NDArray[Any]:
        """Return the labels of a sample, [columns]: class ids for names, the ignored value where one is missing.

        Args:
            row: Number of its row.

        Raises:
            DataError: A label is missing and the task ignores none, or is no number and no name of a class.
        """
        values = zip(self.columns, self._table.iloc[row].tolist(), strict=True)
        numbers = [self._number(self._table.index[row], column, value) for column, value in values]
        several = self.plan.task == "multilabel_classification"
        return np.array(numbers, dtype=np.int64 if several else np.float32)

    def _number(self, name: Any, column: str, value: Any) -> float:
        plan, place = self.plan, f"{self.path}, row {name!r}, column {column!r}"
        if isinstance(value, str) and plan.task == "classification":
            names = list(map(str, plan.class_names))
            if value.strip() in names:
                return float(names.index(value.strip()))
            known = f"none of the class_names {', '.join(names)}" if names else "a name, but there are no class_names"
            raise DataError(f"{place}: {value!r} is {known}.{suggest(value, names)}")
        try:
            number = float("nan") if value is None else float(value)
        except (TypeError, ValueError):
            raise DataError(f"{place}: {value!r} is no number.") from None
        if not np.isfinite(number):
            if plan.missing is None or np.isinf(number):
                several = plan.task == "multilabel_classification"
                raise DataError(
                    f"{place}: the label is missing or not finite ({value!r}). Take the sample out of the split files; "
                    + ("multi-label losses ignore none." if several else "set ignore_index and no_label_replace to -1.")
                )
            return plan.missing
        if plan.task == "multilabel_classification" and number not in (0, 1, plan.missing):
            raise DataError(f"{place}: {number:g} is neither 0 nor 1.")
        if plan.task == "classification" and number != plan.missing:
            count = plan.num_classes
            if number != int(number) or number < 0 or (count is not None and number >= count):
                last = "num_classes - 1" if count is None else count - 1
                raise DataError(f"{place}: {number:g} is no class id, expected 0 to {last}.")
        return number


class PredictionTable:
    """Collects predictions for whole images, and writes them as a CSV."""

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []
        self._are_classes = True
        self._boxes: list[list[Any]] | None = None

    def add(self, name: str, values: Tensor, *, lost: bool) -> None:
        """Add the row of an image.

        Args:
            name: File.
            values: Class id [], or values of any shape.
            lost: Whether the values mean nothing; the row then holds none.
        """
        self._are_classes &= not values.is_floating_point() and values.numel() == 1
        self._rows.append([name, *(("",) * values.numel() if lost else _texts(values))])

    def add_boxes(self, names: Sequence[str], predictions: Sequence[Mapping[str, Tensor]]) -> None:
        """Add a row for each box that was found.

        Args:
            names: File of each image.
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
    """Return numbers with as many digits as their type holds, and no more."""
    numbers = values.detach().cpu()
    return [str(number) for number in (numbers.float() if numbers.is_floating_point() else numbers).numpy().flatten()]


def _name(label: Any, class_names: Sequence[str]) -> list[str]:
    """Return a column with the name of a class, or none where there are no names."""
    if not class_names:
        return []
    return [class_names[int(label)] if label != "" and int(label) < len(class_names) else ""]


def is_detection(prediction: Any) -> bool:
    """Whether a task predicts boxes: a dict with 'boxes', 'labels' and 'scores' for each image."""
    return isinstance(prediction, list) and all(isinstance(found, Mapping) and "boxes" in found for found in prediction)
