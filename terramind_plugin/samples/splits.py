"""Split files: which samples belong to training, validation and test."""

from __future__ import annotations

import csv
import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from terramind_plugin.errors import DataError
from terramind_plugin.files import write_lines

logger = logging.getLogger("terramind_plugin")

SEN1FLOODS11_LISTS = ("flood_train_data", "flood_valid_data", "flood_test_data", "flood_bolivia_data")
TABLES = (".csv", ".parquet")
"""Endings of split files that are tables."""


def read_split(path: str | os.PathLike[str]) -> list[str]:
    """Return the sample ids in a split file, in order; blank lines are skipped, repeated ids used once.

    Args:
        path: A text file with one id a line, or a .csv or .parquet table with the ids in its index (first column).

    Raises:
        DataError: There is no such file, it is not UTF-8 text, or it holds no id.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"Split file not found: {path}. It should hold one sample id a line.")
    try:
        lines = _table_index(path) if path.suffix in TABLES else path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"Split file {path} is not UTF-8 text. Save it as UTF-8, one sample id a line.") from None
    ids = [line.strip() for line in lines if line.strip()]
    unique = list(dict.fromkeys(ids))
    if not unique:
        raise DataError(f"Split file {path} holds no sample id. It should hold one a line.")
    if len(unique) < len(ids):
        repeated = next(name for name in unique if ids.count(name) > 1)
        logger.warning("Split file %s names %d ids more than once, e.g. %s; each is used once.", path,
                       len(ids) - len(unique), repeated)  # fmt: skip
    return unique


def _table_index(path: Path) -> list[str]:
    from terratorch.datasets.generic_multimodal_dataset import load_table_data

    return [str(name) for name in load_table_data(path).index]


def check_files(
    ids: Sequence[str],
    roots: Mapping[str, str | os.PathLike[str]],
    suffixes: Mapping[str, str],
    *,
    substrings: bool,
    optional: Sequence[str],
    split: str,
) -> None:
    """Check that every sample of a split has exactly one file of everything it needs.

    Args:
        ids: Sample ids.
        roots: Folder by modality; 'mask' is the label's.
        suffixes: Pattern behind the id by modality, e.g. '*_S2Hand.tif'.
        substrings: Whether the pattern's leading wildcard may match text between id and suffix.
        optional: Modalities that a sample may lack; it needs one of them if there is no other.
        split: Name of the split file, for messages.

    Raises:
        DataError: Files are missing, or an id stands for several; the message shows the first ones.
    """
    problems: list[str] = []
    concerned = 0
    for name in ids:
        before = len(problems)
        found = {key: _matches(Path(root) / name, suffixes[key], substrings) for key, root in roots.items()}
        for key, files in found.items():
            if len(files) > 1:
                shown = ", ".join(Path(file).name for file in files[:3])
                problems.append(f"{name}: {len(files)} files for {key} ({shown}); make the id or the suffix exact")
            elif not files and key not in optional:
                problems.append(f"{name}: no file for {key} at {Path(roots[key]) / name}{suffixes[key]}")
        if optional and not any(found[key] for key in optional):
            problems.append(f"{name}: no file of any modality ({', '.join(optional)})")
        concerned += len(problems) > before
    if problems:
        shown = "\n  ".join(problems[:5]) + (f"\n  and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(
            f"{split} does not match the data, {len(problems)} problems with {concerned} of {len(ids)} samples:\n"
            f"  {shown}\n"
            "Check the data roots, image_grep and label_grep, or remove the ids. "
            "Samples that may lack a modality need allow_missing_modalities: true."
        )


def _matches(stem: Path, pattern: str, substrings: bool) -> list[str]:
    exact = f"{stem}{pattern.strip('*')}"
    if os.path.exists(exact):
        return [exact]
    return sorted(glob.glob(f"{glob.escape(str(stem))}{pattern}")) if substrings else []


def convert_sen1floods11_lists(csv_dir: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Return the .txt split files written from the official Sen1Floods11 CSV lists.

    Args:
        csv_dir: Folder with flood_train_data.csv, flood_valid_data.csv, flood_test_data.csv and, if wanted,
            flood_bolivia_data.csv; each line names an S1 file and its label file.
        out: Folder to write to; made if it does not exist.

    Raises:
        DataError: No list is there, or a line is not of that form.
    """
    csv_dir, out = Path(csv_dir), Path(out)
    sources = [csv_dir / f"{name}.csv" for name in SEN1FLOODS11_LISTS if (csv_dir / f"{name}.csv").is_file()]
    if not sources:
        raise DataError(
            f"No Sen1Floods11 list in {csv_dir}. Expected {', '.join(f'{name}.csv' for name in SEN1FLOODS11_LISTS)}, "
            "as in v1.1/splits/flood_handlabeled of the data set."
        )
    lists = {source: _read_official_list(source) for source in sources}
    written = []
    for source, ids in lists.items():
        target = out / f"{source.stem}.txt"
        write_lines(target, ids)
        written.append(target)
    return written


def _read_official_list(source: Path) -> list[str]:
    ids = []
    with source.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not any(cell.strip() for cell in row):
                continue
            names = [cell.strip() for cell in row]
            name = names[0].removesuffix("_S1Hand.tif")
            if names != [f"{name}_S1Hand.tif", f"{name}_LabelHand.tif"]:
                raise DataError(
                    f"{source}, line {number}: expected '<id>_S1Hand.tif,<id>_LabelHand.tif', got '{','.join(row)}'."
                )
            ids.append(name)
    if not ids:
        raise DataError(f"{source} is empty.")
    return list(dict.fromkeys(ids))
