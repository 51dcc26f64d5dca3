"""Tables of labels of whole images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError, suggest
from terramind_plugin.system.files import read_table, write_rows


@dataclass(frozen=True)
class LabelPlan:
    """Requirements for a table of labels."""

    task: str | None = None
    """Task of the data module, e.g. 'classification'; None and other tasks accept any numbers."""
    class_names: Sequence[str] = ()
    """Names of the classes; empty if unknown."""
    num_classes: int | None = None
    """Number of classes; None if there are no classes."""
    num_outputs: int | None = None
    """Number of values that a regression predicts; None if unknown."""
    missing: float | None = None
    """Label that the task's loss ignores; None if labels may not be missing."""


class LabelTable:
    """Checked labels of whole images, by sample id.

    Args:
        path: CSV or Parquet file with the ids in its index (first column).
        plan: Requirements on the table.

    Raises:
        DataError: A column is missing, there are too many columns, or an id has several rows.
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
            raise DataError(f"{path} has several rows for {repeated[0]!r}. Keep one row for each id.")
        self.columns = self._choose([str(name) for name in table.columns])
        self._table = table[[table.columns[list(map(str, table.columns)).index(name)] for name in self.columns]]

    def _choose(self, columns: list[str]) -> list[str]:
        """Return the columns that hold labels; if they are classes with names, in the order of the classes."""
        plan = self.plan
        names = list(map(str, plan.class_names))
        if not columns:
            raise DataError(f"{self.path} has no column of labels, only the ids in its first column.")
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
        """Raise an error if samples have no row.

        Args:
            ids: Sample ids.
            split: Name of the split file, for the message.

        Raises:
            DataError: Samples have no row; the message shows the first one.
        """
        lacking = [name for name in ids if name not in self._table.index]
        if lacking:
            numbers = self._table.index.dtype.kind in "iuf"
            has = ", ".join(map(repr, self._table.index[:2].tolist()))
            raise DataError(
                f"{self.path} has no label for {len(lacking)} of {len(ids)} samples of {split}, e.g. {lacking[0]!r}; "
                f"it has {has}. Its first column must hold the ids of the split file, below one line of column names."
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
            DataError: A label is missing and the task ignores none, or is neither a number nor the name of a class.
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
            raise DataError(f"{place}: {value!r} is not a number.") from None
        if not np.isfinite(number):
            if plan.missing is None or np.isinf(number):
                several = plan.task == "multilabel_classification"
                raise DataError(
                    f"{place}: the label is missing or not finite ({value!r}). Remove the sample from the split files; "
                    + ("multi-label losses ignore none." if several else "set ignore_index and no_label_replace to -1.")
                )
            return plan.missing
        if plan.task == "multilabel_classification" and number not in (0, 1, plan.missing):
            raise DataError(f"{place}: {number:g} is neither 0 nor 1.")
        if plan.task == "classification" and number != plan.missing:
            count = plan.num_classes
            if number != int(number) or number < 0 or (count is not None and number >= count):
                last = "num_classes - 1" if count is None else count - 1
                raise DataError(f"{place}: {number:g} is not a class id, expected 0 to {last}.")
        return number
