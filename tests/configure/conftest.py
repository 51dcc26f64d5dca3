"""Folders of chips as users have them, made of one simulated data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from terramind_plugin.simulation.dataset import chip_files, simulate

CHIPS, SIDE = 12, 64


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """Return a simulated data set in the layout of Sen1Floods11."""
    root = tmp_path_factory.mktemp("simulated") / "floods"
    simulate(root, chips=CHIPS, size=SIDE)
    return root


class Chips:
    """Pixels of a simulated data set, to be written in other layouts.

    Args:
        root: The data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ids = sorted(path.name.removesuffix("_LabelHand.tif") for path in (root / "data/LabelHand").glob("*.tif"))
        self._read: dict[tuple[str, str], NDArray[Any]] = {}

    def read(self, name: str, key: str) -> NDArray[Any]:
        """Return the pixels [bands, H, W] of a modality, or of the 'label', of a chip."""
        if (name, key) not in self._read:
            with rasterio.open(chip_files(self.root, name)[key]) as file:
                self._read[name, key] = file.read()
        return self._read[name, key]


@pytest.fixture(scope="session")
def chips(simulated) -> Chips:
    """Return the pixels of the simulated data set."""
    return Chips(simulated)


def write(path: Path, values: NDArray[Any], place: int = 0, nodata: float | None = None, names: Any = None) -> None:
    """Write a GeoTIFF whose chips, by their `place`, lie apart from each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
        "dtype": values.dtype, "crs": "EPSG:32633", "transform": from_origin(4e5 + 2e4 * place, 5e6, 10, 10),
        "nodata": nodata,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        if names:
            file.descriptions = names


def burn_scars(chips: Chips, root: Path) -> list[str]:
    """Write images and masks in one folder, one for each split, with six bands of reflectance 0-1."""
    for number, name in enumerate(chips.ids):
        folder = root / ("training_chips" if number % 4 else "validation_chips")
        six = chips.read(name, "S2L2A")[[1, 2, 3, 8, 10, 11]] / 10000
        write(folder / f"HLS.S30.{name}_merged.tif", six.astype("float32"), number)
        write(folder / f"HLS.S30.{name}.mask.tif", chips.read(name, "label").astype("int16"), number)
    return ["--task", "segmentation", "--modalities", "S2L2A", "--class_names", "Others,Burned"]


def eurosat(chips: Chips, root: Path) -> list[str]:
    """Write a folder for each class, with thirteen bands, B8A last."""
    for number, name in enumerate(chips.ids):
        kind = ("Forest", "SeaLake", "Town")[number % 3]
        bands = chips.read(name, "S2L1C")[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 8]]
        write(root / kind / f"{kind}_{number}.tif", bands, number)
    return ["--task", "classification", "--modalities", "S2L1C"]


def four_bands(chips: Chips, root: Path) -> list[str]:
    """Write four bands of thirteen, and labels that count from 1."""
    for number, name in enumerate(chips.ids):
        write(root / "images" / f"{name}.tif", chips.read(name, "S2L2A")[[1, 2, 3, 7]], number)
        label = chips.read(name, "label") + 1
        write(root / "masks" / f"{name}.tif", label.astype("uint8"), number, nodata=0)
    return ["--task", "segmentation", "--modalities", "S2L2A"]


def heights(chips: Chips, root: Path) -> list[str]:
    """Write optical, radar and heights with gaps, and lists of file names."""
    for number, name in enumerate(chips.ids):
        label = chips.read(name, "DEM").astype("float32")
        label[:, :3] = np.nan
        write(root / "S2L2A" / f"{name}.tif", chips.read(name, "S2L2A"), number)
        write(root / "S1RTC" / f"{name}.tif", chips.read(name, "S1RTC"), number)
        write(root / "height_labels" / f"{name}.tif", label, number)
    for split, ids in (("train", chips.ids[:8]), ("val", chips.ids[8:10]), ("test", chips.ids[10:])):
        (root / f"{split}.txt").write_text("".join(f"{name}.tif\n" for name in ids), encoding="utf-8")
    return ["--task", "regression", "--modalities", "S2L2A,S1RTC"]


def pairs(chips: Chips, root: Path) -> list[str]:
    """Write a folder for each of two dates."""
    for number, name in enumerate(chips.ids):
        for folder in ("before", "after"):
            write(root / folder / f"{name}.tif", chips.read(name, "S2L2A"), number)
        write(root / "label" / f"{name}.tif", chips.read(name, "label").astype("int16"), number)
    return ["--task", "segmentation", "--modalities", "S2L2A"]


def dated(chips: Chips, root: Path) -> list[str]:
    """Write three dates of each chip in one folder."""
    for number, name in enumerate(chips.ids):
        for date in range(3):
            write(root / "s2" / f"{name}_t{date}.tif", chips.read(name, "S2L2A"), number)
        write(root / "label" / f"{name}.tif", chips.read(name, "label").astype("int16"), number)
    return ["--task", "segmentation", "--modalities", "S2L2A"]


def months(chips: Chips, root: Path) -> list[str]:
    """Write optical and radar images of two months in one folder for each split, as BioMassters names them."""
    for number, name in enumerate(chips.ids):
        split, one = ("test", "train")[number % 4 > 0], f"{number:04x}abcd"
        clouds = np.zeros((1, SIDE, SIDE), "int16")
        optical = np.concatenate([chips.read(name, "S2L2A")[[1, 2, 3, 4, 5, 6, 7, 8, 10, 11]], clouds])
        for month in ("00", "11"):
            write(root / f"{split}_features" / f"{one}_S2_{month}.tif", optical, number)
            write(root / f"{split}_features" / f"{one}_S1_{month}.tif", chips.read(name, "S1GRD"), number)
        write(root / f"{split}_agbm" / f"{one}_agbm.tif", chips.read(name, "DEM"), number)
    bands = "S2L2A=B02,B03,B04,B05,B06,B07,B08,B8A,B11,B12,CLP"
    words = ["--task", "regression", "--modalities", "S2L2A,S1GRD", "--labels", "train_agbm"]
    return [*words, "--bands", bands]


def series(chips: Chips, root: Path) -> list[str]:
    """Write three dates of six bands in one file, labels from 1 with 0 for none."""
    for number, name in enumerate(chips.ids):
        six = chips.read(name, "S2L2A")[[1, 2, 3, 8, 10, 11]]
        label = np.where(chips.read(name, "label") < 0, 0, chips.read(name, "label") + 1)
        write(root / "chips" / f"{name}_merged.tif", np.concatenate([six] * 3), number)
        write(root / "chips" / f"{name}.mask.tif", label.astype("uint8"), number)
    return ["--task", "segmentation", "--modalities", "S2L2A"]


def missing(chips: Chips, root: Path) -> list[str]:
    """Write chips of two sizes, of which some lack radar, with 255 for pixels without a label."""
    for number, name in enumerate(chips.ids):
        side = SIDE - 8 * (number % 2)
        label = chips.read(name, "label")
        parts = {"s2": chips.read(name, "S2L2A"), "gt": np.where(label < 0, 255, label).astype("uint8")}
        parts |= {"s1": chips.read(name, "S1GRD")} if number % 3 else {}
        for key, values in parts.items():
            write(root / key / f"{name}_{key}.tif", values[:, :side, :side], number)
    return ["--task", "segmentation", "--modalities", "S2L2A,S1GRD"]


def one_folder(chips: Chips, root: Path) -> list[str]:
    """Write everything in one folder."""
    for number, name in enumerate(chips.ids):
        for key in ("S2L2A", "S1GRD", "DEM"):
            write(root / f"{name}_{key}.tif", chips.read(name, key), number)
        write(root / f"{name}_label.tif", chips.read(name, "label").astype("int16"), number)
    return ["--task", "segmentation", "--modalities", "S2L2A,S1GRD,DEM"]


def table(chips: Chips, root: Path, head: list[str], rows: list[list[Any]]) -> None:
    """Write images and a table of labels."""
    for number, name in enumerate(chips.ids):
        write(root / "S2L2A" / f"{name}.tif", chips.read(name, "S2L2A"), number)
    lines = [head, *([name, *row] for name, row in zip(chips.ids, rows, strict=True))]
    (root / "labels.csv").write_text("".join(f"{','.join(map(str, line))}\n" for line in lines), encoding="utf-8")


def numbers(chips: Chips, root: Path) -> list[str]:
    """Write a table with one number for each image among others."""
    table(chips, root, ["chip", "lon", "lat", "target"], [[1.5, 2.5, n / 10] for n in range(CHIPS)])
    return ["--task", "scalar_regression", "--modalities", "S2L2A"]


def flags(chips: Chips, root: Path) -> list[str]:
    """Write a table with several classes for each image."""
    table(chips, root, ["chip", "water", "forest", "town"], [[n % 2, n // 2 % 2, n // 4 % 2] for n in range(CHIPS)])
    return ["--task", "multilabel_classification", "--modalities", "S2L2A"]


def classes(chips: Chips, root: Path) -> list[str]:
    """Write a table with the name of a class for each image."""
    table(chips, root, ["chip", "lon", "class"], [[n, ["Wet", "Dry"][n % 2]] for n in range(CHIPS)])
    return ["--task", "classification", "--modalities", "S2L2A"]


LAYOUTS = (
    burn_scars, eurosat, four_bands, heights, pairs, dated, series, missing, one_folder, numbers, flags, classes,
)  # fmt: skip
