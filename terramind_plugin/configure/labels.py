"""Content of labels: class ids of rasters, columns of tables, folders of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terramind_plugin.configure.names import ending, split_of
from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.samples.checks.findings import some
from terramind_plugin.samples.checks.labels import Mask
from terramind_plugin.sources.labels import read_class_names
from terramind_plugin.system.files import TABLES, read_table

OF_PIXELS = ("segmentation", "regression")
"""Tasks whose labels are rasters."""
IGNORED = -1
"""Label of pixels without one, as in the configurations that ship."""
NEGATIVE = -9999
"""Label of pixels without one where -1 may be a value."""
USUAL_GAPS = (255, 254, 127, 99, -9999, -999, -99, 65535, 32767)
"""Values that often mark pixels without a label."""
MOST_CLASSES = 256
DENSITY = 4
"""Maximum ratio of the largest class id to the number of classes that occur; above it, ids are taken for codes."""
NAMED = ("label", "class", "category", "target", "value", "y", "class_name", "classname")
"""Names of columns that hold the label, if a table has several columns."""


@dataclass
class LabelSet:
    """The labels of a task, as a configuration describes them."""

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    ignored: int = IGNORED
    """Label that loss and metrics ignore."""
    fills_gaps: bool = False
    """True if nodata and NaN are replaced by `ignored`."""
    shifted: bool = False
    """True if ids count from 1, and 0 is not a label."""
    columns: tuple[str, ...] = ()
    """Columns of a table that hold labels."""
    rows: dict[str, list[Any]] = field(default_factory=dict)
    """Values of the columns by sample id; empty for rasters."""
    notes: list[str] = field(default_factory=list)


def describe_masks(masks: Sequence[Mask], task: str, names: Sequence[str]) -> LabelSet:
    """Return a description of label rasters.

    Args:
        masks: Values of label files, at least one.
        task: 'segmentation' or 'regression'.
        names: Names of the classes that the user has typed.

    Raises:
        DataError: A file cannot be used, or the values do not suit the task.
    """
    broken = [mask for mask in masks if mask.problem]
    if broken:
        raise DataError(f"{counted(len(broken), 'label')} cannot be used, e.g. {broken[0].problem}")
    total: Counter[float] = Counter()
    gaps: set[float] = set()
    for mask in masks:
        for value, count in mask.counts.items():
            if value != value or value == mask.nodata:
                gaps.add(value)
            else:
                total[value] += count
    tagged = task == "segmentation" and set(total) == {1.0} and 0 in gaps
    if tagged:  # a mask of one class, whose background is declared to be nodata
        total[0.0] += 1
        gaps.discard(0)
    if not total:
        raise DataError(f"{counted(len(masks), 'label')} hold nodata alone, e.g. {masks[0].path}.")
    if task == "regression":
        return _describe_numbers(total, bool(gaps))
    found = _describe_classes(total, bool(gaps), masks[0], names)
    if tagged:
        found.notes.append("0, which the files declare as nodata, taken as the class beside 1")
    return found


def _describe_numbers(total: Counter[float], gaps: bool) -> LabelSet:
    low, high = min(total), max(total)
    found = LabelSet(ignored=IGNORED if low >= 0 else NEGATIVE, fills_gaps=True)
    found.notes.append(f"numbers from {low:g} to {high:g}" + (", with pixels without one" if gaps else ""))
    if len(total) <= 2:
        found.notes.append("so few different numbers look like classes: --task segmentation may be meant")
    if max(abs(low), abs(high)) > 1000:
        found.notes.append("large numbers train slowly: consider dividing them so that they are about 1")
    return found


def _describe_classes(total: Counter[float], gaps: bool, example: Mask, names: Sequence[str]) -> LabelSet:
    odd = [value for value in total if value != int(value)]
    if odd:
        raise DataError(
            f"Labels hold numbers such as {odd[0]:g}, e.g. {example.path}: no class ids. Use --task regression."
        )
    values = sorted(int(value) for value in total)
    if values == [0, 255]:
        raise DataError(
            f"Labels hold 0 and 255, e.g. {example.path}: a mask with 255 for a class. Write 1 instead of 255: "
            "gdal_calc.py -A MASK --calc 'A/255' --outfile LABEL."
        )
    negative = [value for value in values if value < 0]
    classes = [value for value in values if value >= 0]
    outside = [value for value in classes if value in USUAL_GAPS and value > len(names or classes)]
    classes = [value for value in classes if value not in outside]
    if not classes:
        raise DataError(f"Labels hold {some(values)} alone, e.g. {example.path}: no class ids from 0 on.")
    found = LabelSet(fills_gaps=gaps)
    unlabelled = [*negative, *outside]
    if len(unlabelled) > 1:
        raise DataError(
            f"Labels hold {some(unlabelled)} beside the classes {some(classes, 10)}, e.g. {example.path}: one value "
            "alone can mark pixels without a label."
        )
    if unlabelled:
        found.ignored = unlabelled[0]
        found.notes.append(f"{unlabelled[0]} taken as pixels without a label")
    if classes[-1] >= MOST_CLASSES or classes[-1] > DENSITY * max(len(classes), len(names), 2):
        raise DataError(
            f"Labels hold the codes {some(classes, 12)}, e.g. {example.path}: class ids must be consecutive from 0 on. "
            "Write labels with such ids instead of the codes."
        )
    if classes[0] > 0 and found.ignored == IGNORED:
        found.shifted = True
        classes = [value - 1 for value in classes]
        found.notes.append("class ids count from 1: they are lowered by 1 (reduce_zero_label)")
    return _name_classes(found, classes, example.path, names)


def _name_classes(found: LabelSet, classes: Sequence[int], example: Path, names: Sequence[str]) -> LabelSet:
    """Return labels with the number and the names of their classes."""
    found.num_classes = max(classes[-1] + 1, 2)
    if names and len(names) <= classes[-1]:
        raise ConfigError(f"--class_names has {len(names)} names, but the labels have class ids up to {classes[-1]}.")
    tagged = read_class_names(str(example)) if not names and not found.shifted else {}
    if names:
        found.class_names, found.num_classes = tuple(names), len(names)
    else:
        found.class_names = tuple(tagged.get(one, f"class {one}") for one in range(found.num_classes))
    absent = sorted(set(range(found.num_classes)) - set(classes))
    if absent:
        found.notes.append(f"no pixel of class {some(absent, 5)} in the files that were read")
    return found


def find_table(data: Path) -> Path | None:
    """Return the table of labels below a folder, a CSV or Parquet file that is not a split list; None if there is none.

    Raises:
        DataError: There are several.
    """
    found = [path for path in sorted(data.rglob("*")) if path.suffix in TABLES and split_of(path.stem) is None]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(data).parts)]
    if len(found) > 1:
        raise DataError(f"{data} has several tables: {some(found)}. Name the one with the labels: --labels FILE.")
    return found[0] if found else None


def read_label_table(path: Path) -> Any:
    """Return a table of labels whose ids are texts without the file endings of rasters.

    Raises:
        DataError: The file is not a table, has no row, has no column beside the ids, or repeats an id.
    """
    try:
        table = read_table(path)
    except Exception as error:  # pandas raises errors of many classes
        raise DataError(f"{path} cannot be read as a table of labels: {error}") from error
    if table.empty:
        raise DataError(f"{path} holds no label: expected ids in the first column and labels beside them.")
    table.index = [text[: -len(ending(text))] if ending(text) else text for text in map(str, table.index)]
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise DataError(f"{path} has several rows for {repeated[0]!r}. Keep one row for each id.")
    return table


def describe_table(
    path: Path, task: str, names: Sequence[str], columns: Sequence[str], ids: Sequence[str], table: Any
) -> LabelSet:
    """Return a description of a table with labels of whole images.

    Args:
        path: The table, for messages.
        task: 'classification', 'multilabel_classification' or 'scalar_regression'.
        names: Names of the classes that the user has typed.
        columns: Columns that the user has typed.
        ids: Ids of the samples that have images.
        table: Its content, from `read_label_table`.

    Raises:
        ConfigError: A column that the user has typed does not exist.
        DataError: The columns do not suit the task.
    """
    own = [one for one in ids if one in table.index]
    if not own:
        has = ", ".join(map(repr, table.index[:2].tolist()))
        raise DataError(
            f"{path} has no row for any image: its first column has {has}, images are called {some(list(ids), 2)}. "
            "Its first column must hold the names of the files without suffix."
        )
    all_columns = list(map(str, table.columns))
    lacking = [one for one in columns if one not in all_columns]
    if lacking:
        raise ConfigError(f"{path} has no column '{lacking[0]}'. It has: {', '.join(all_columns)}.")
    chosen = list(columns) or _choose_columns(path, table.loc[own], all_columns, task)
    values = table.loc[own, [table.columns[all_columns.index(one)] for one in chosen]]
    if values.isna().to_numpy().any():
        row = values.index[values.isna().to_numpy().any(axis=1)][0]
        raise DataError(f"{path} has no value for {row!r} in {', '.join(chosen)}. Fill the cell, or remove the row.")
    found = LabelSet(columns=tuple(chosen))
    found.rows = dict(zip(own, values.to_numpy().tolist(), strict=True))
    if task == "classification":
        return _describe_one_class(found, path, names)
    if task == "multilabel_classification":
        found.class_names, found.num_classes = tuple(chosen), len(chosen)
    return found


def _choose_columns(path: Path, table: Any, columns: list[str], task: str) -> list[str]:
    numeric = [name for name, kind in zip(columns, table.dtypes, strict=True) if kind.kind in "iufb"]
    flags = [name for name in numeric if set(np.unique(table[name])) <= {0, 1}]
    if task == "multilabel_classification":
        if len(flags) < 2:
            raise DataError(f"{path} has {counted(len(flags), 'column')} of 0 and 1, expected one for each class.")
        return flags
    possible = columns if task == "classification" else numeric
    if len(possible) == 1:
        return possible
    usual = [name for name in possible if name.lower() in NAMED]
    if len(usual) == 1:
        return usual
    what = "the class" if task == "classification" else "the number"
    raise DataError(f"{path} has the columns {some(columns, 8)}. Name the one with {what}: --columns NAME.")


def _describe_one_class(found: LabelSet, path: Path, names: Sequence[str]) -> LabelSet:
    """Return labels with the classes of one column of names or ids."""
    if len(found.columns) != 1:
        raise ConfigError(f"A classification has one column of classes, --columns names {len(found.columns)}.")
    values = {row[0] for row in found.rows.values()}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        odd = [value for value in values if value != int(value) or value < 0]
        if odd:
            name = found.columns[0]
            raise DataError(f"{path}: {odd[0]:g} in {name} is not a class id. Use --task scalar_regression.")
        ids = sorted(int(value) for value in values)
        if ids[-1] > DENSITY * max(len(ids), len(names), 2):
            raise DataError(f"{path}: {some(ids, 8)} in {found.columns[0]} are codes, not class ids from 0 on.")
        if names and len(names) <= ids[-1]:
            raise ConfigError(f"--class_names has {len(names)} names, but {path} has class ids up to {ids[-1]}.")
        found.num_classes = len(names) or max(ids[-1] + 1, 2)
        found.class_names = tuple(names) or tuple(f"class {one}" for one in range(found.num_classes))
        found.rows = {one: [int(row[0])] for one, row in found.rows.items()}
        return found
    texts = sorted({str(value).strip() for value in values})
    unknown = [text for text in texts if names and text not in names]
    if unknown:
        raise ConfigError(f"--class_names lacks '{unknown[0]}', which {path} has.")
    if len(texts) > len(found.rows) / 2 and len(texts) > MOST_CLASSES:
        raise DataError(f"{path}: {found.columns[0]} has {len(texts)} different texts: no classes. Name --columns.")
    found.class_names = tuple(names) or tuple(texts)
    found.num_classes = len(found.class_names)
    found.rows = {one: [str(row[0]).strip()] for one, row in found.rows.items()}
    return found


def describe_class_folders(ids: Sequence[str], names: Sequence[str]) -> LabelSet:
    """Return the classes that are the folders of the images.

    Args:
        ids: Sample ids, such as 'Forest/Forest_12'.
        names: Names of the classes that the user has typed.

    Raises:
        DataError: The images are not in folders of classes.
    """
    classes = sorted({one.rpartition("/")[0] for one in ids})
    if len(classes) < 2 or "" in classes:
        raise DataError(
            "No labels: neither a table (CSV with ids and classes) nor a folder of images for each class was found. "
            "Name the table: --labels FILE."
        )
    unknown = [one for one in classes if names and one not in names]
    if unknown:
        raise ConfigError(f"--class_names lacks '{unknown[0]}', a folder of images.")
    found = LabelSet(len(names or classes), tuple(names or classes), columns=("class",))
    found.rows = {one: [one.rpartition("/")[0]] for one in ids}
    found.notes.append(f"classes from the names of {len(classes)} folders")
    return found
