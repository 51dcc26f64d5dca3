"""The command that makes split lists; it imports heavy packages only when it runs."""

from __future__ import annotations

from pathlib import Path


def run_splits(*, csv_dir: Path, out: Path) -> None:
    """Turn the official Sen1Floods11 CSV lists into .txt split files.

    Args:
        csv_dir: Folder v1.1/splits/flood_handlabeled of the data set.
        out: Folder to write to.
    """
    from terramind_plugin.samples.splits import convert_sen1floods11_lists

    for path in convert_sen1floods11_lists(csv_dir, out):
        print(path)
