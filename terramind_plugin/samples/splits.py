"""The official lists of Sen1Floods11 as split files."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from terramind_plugin.errors import DataError
from terramind_plugin.system.files import write_lines

SEN1FLOODS11_LISTS = ("flood_train_data", "flood_valid_data", "flood_test_data", "flood_bolivia_data")


def convert_sen1floods11_lists(csv_dir: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Write the official Sen1Floods11 CSV lists as .txt split files, and return their paths.

    Args:
        csv_dir: Folder with flood_train_data.csv, flood_valid_data.csv, flood_test_data.csv and, optionally,
            flood_bolivia_data.csv. Each line names an S1 file and its label file.
        out: Folder to write to; created if it does not exist.

    Raises:
        DataError: There is no list, or a line has another format.
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
