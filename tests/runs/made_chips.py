"""Small data sets of random pixels, laid out as the configurations of tasks other than segmentation expect them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rasterio.transform import from_origin

from terramind_plugin.raster.writer import write_geotiff
from tests.runs.running import REPOSITORY

SPLITS = {"train": 4, "val": 2, "test": 2}
BANDS = {"S2L1C": 13, "S2L2A": 12, "S1RTC": 2}


def write_image(path: Path, kind: str, number: int, size: int) -> None:
    """Write an image of a modality, a 'height' or an 'rgb'; no two numbers lie on the same ground."""
    rng = np.random.default_rng(number)
    values = {
        "S1RTC": lambda: rng.normal(-14, 4, (2, size, size)).astype(np.float32),
        "height": lambda: (rng.random((1, size, size)) * 30).astype(np.float32),
        "rgb": lambda: rng.integers(0, 255, (3, size, size)).astype(np.uint8),
    }.get(kind, lambda: rng.integers(200, 4000, (BANDS.get(kind, 1), size, size)).astype(np.uint16))()
    place = from_origin(3e5 + 5000 * number, 5e6, 10, 10)
    write_geotiff(path, values, crs="EPSG:32632", transform=place)


def write_splits(folder: Path, ids: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    first = 0
    for split, count in SPLITS.items():
        (folder / f"{split}.txt").write_text("\n".join(ids[first : first + count]) + "\n")
        first += count


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(header), *map(list, rows)])


def class_names(name: str) -> list[str]:
    config = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    return list(config["data"]["init_args"]["class_names"])


def eurosat(home: Path) -> None:
    root, names = home / "eurosat", class_names("eurosat_classification")
    ids = [f"{names[number % 3]}/{names[number % 3]}_{number}" for number in range(8)]
    for number, name in enumerate(ids):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / "images" / f"{name}.tif", "S2L1C", number, 64)
    write_splits(root / "splits", ids)
    write_table(root / "labels.csv", ["id", "class"], [[name, name.split("/")[0]] for name in ids])


def bigearthnet(home: Path) -> None:
    root, names = home / "bigearthnet", class_names("bigearthnet_multilabel")
    ids = [f"patch_{number}" for number in range(8)]
    (root / "images").mkdir(parents=True)
    for number, name in enumerate(ids):
        write_image(root / "images" / f"{name}.tif", "S2L2A", number, 120)
    write_splits(root / "splits", ids)
    backwards = names[::-1]
    rows = [
        [name, *(int((number + place) % 3 == 0) for place in range(len(names))), "Austria"]
        for number, name in enumerate(ids)
    ]
    write_table(root / "labels.csv", ["id", *backwards, "country"], rows)


def pair(root: Path, extra: str | None = None) -> list[str]:
    """Write optical and radar images, and return their ids."""
    ids = [f"chip_{number}" for number in range(8)]
    kinds = {"S2L2A": "S2L2A", "S1RTC": "S1RTC", **({"labels": extra} if extra else {})}
    for folder, kind in kinds.items():
        (root / folder).mkdir(parents=True)
        for number, name in enumerate(ids):
            write_image(root / folder / f"{name}.tif", kind, number, 64)
    write_splits(root / "splits", ids)
    return ids


def tree_cover(home: Path) -> None:
    ids = pair(home / "tree_cover")
    rows = [[name, number / 8] for number, name in enumerate(ids)]
    write_table(home / "tree_cover" / "labels.csv", ["id", "tree_cover"], rows)


def canopy_height(home: Path) -> None:
    pair(home / "canopy_height", "height")


def vhr10(home: Path) -> None:
    number = 0
    for split, count in SPLITS.items():
        images, labels = home / "vhr10" / "images" / split, home / "vhr10" / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for _ in range(count):
            number += 1
            write_image(images / f"scene_{number}.tif", "rgb", number, 64)
            found = {"boxes": [[4, 6, 30, 40], [20, 20, 60, 50]], "labels": [1, 2]}
            (labels / f"scene_{number}.json").write_text(json.dumps(found))


MAKE: dict[str, Callable[[Path], None]] = {
    "eurosat_classification": eurosat,
    "bigearthnet_multilabel": bigearthnet,
    "tree_cover_scalar": tree_cover,
    "canopy_height_pixels": canopy_height,
    "vhr10_detection": vhr10,
}
"""The data set of each configuration, written to a folder."""
