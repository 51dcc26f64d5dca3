"""Ways to spoil the files of a simulated data set, and the check of its data alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from terramind_plugin.samples.checks.files import PatchGrid
from terramind_plugin.samples.checks.findings import Finding, Verdict
from terramind_plugin.samples.checks.run import check_data
from terramind_plugin.samples.plan import DataPlan, describe_data
from terramind_plugin.simulation.dataset import SimulatedDataset
from tests.runs.running import change, segmentation_config

Values = Callable[[np.ndarray], np.ndarray]
Spoil = Callable[[SimulatedDataset], object]
KEPT = ("driver", "width", "height", "count", "dtype", "nodata", "crs", "transform")


@dataclass(frozen=True)
class Broken:
    """A mistake, and the finding that has to name it."""

    check: str
    verdict: Verdict
    text: str
    """Pattern in what was seen or in the advice."""
    spoil: Spoil = lambda dataset: None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the configuration, see running.change."""


def rewrite(path: Path, make: Values = lambda values: values, **profile: Any) -> None:
    """Replace the values of a raster, and what else its profile says."""
    with rasterio.open(path) as raster:
        values, kept = make(raster.read()), {key: raster.profile[key] for key in KEPT}
    kept |= {"dtype": values.dtype.name, "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    with rasterio.open(path, "w", **{**kept, **profile}) as raster:
        raster.write(values)


def files(dataset: SimulatedDataset, kind: str) -> list[Path]:
    """Return the files of a modality, or of Label."""
    return sorted((dataset.root / "data" / f"{kind}Hand").iterdir())


def every(kind: str, make: Values = lambda values: values, **profile: Any) -> Spoil:
    """Rewrite all files of a modality."""
    return lambda dataset: [rewrite(path, make, **profile) for path in files(dataset, kind)]


def described(kind: str, names: tuple[str, ...]) -> Spoil:
    """Name the bands of all files of a modality."""

    def spoil(dataset: SimulatedDataset) -> None:
        for path in files(dataset, kind):
            with rasterio.open(path, "r+") as raster:
                raster.descriptions = names

    return spoil


def one(kind: str, make: Values = lambda values: values, **profile: Any) -> Spoil:
    """Rewrite the first file of a modality."""
    return lambda dataset: rewrite(files(dataset, kind)[0], make, **profile)


def others(kind: str, make: Values) -> Spoil:
    """Rewrite all files of a modality but the first."""
    return lambda dataset: [rewrite(path, make) for path in files(dataset, kind)[1:]]


def raw(kind: str, make: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the first file of a modality."""

    def spoil(dataset: SimulatedDataset) -> None:
        path = files(dataset, kind)[0]
        path.write_bytes(make(path.read_bytes()))

    return spoil


def train_list(make: Callable[[str, str], str], encoding: str = "utf-8") -> Spoil:
    """Change the list of training samples, knowing that of validation."""

    def spoil(dataset: SimulatedDataset) -> None:
        folder = dataset.root / "splits"
        train, val = folder / "flood_train_data.txt", folder / "flood_valid_data.txt"
        train.write_bytes(make(train.read_text(), val.read_text()).encode(encoding))

    return spoil


def moved(kind: str, columns: float) -> Spoil:
    """Move the first file of a modality on Earth."""

    def spoil(dataset: SimulatedDataset) -> None:
        with rasterio.open(files(dataset, kind)[0], "r+") as raster:
            a, b, c, d, e, f = raster.transform[:6]
            raster.transform = rasterio.Affine(a, b, c + columns * a, d, e, f)

    return spoil


def same_ground(dataset: SimulatedDataset) -> None:
    """Let a chip for validation show what one for training shows."""
    data, train, val = dataset.root / "data", dataset.splits["train"][0], dataset.splits["valid"][0]
    for kind, ending in (("S2L1C", "S2"), ("S1GRD", "S1"), ("Label", "Label")):
        with rasterio.open(data / f"{kind}Hand" / f"{train}_{ending}Hand.tif") as raster:
            place = {"crs": raster.crs, "transform": raster.transform}
        rewrite(data / f"{kind}Hand" / f"{val}_{ending}Hand.tif", **place)


def second_file(dataset: SimulatedDataset) -> None:
    """Put a second version beside the first S2 file, without the file that an id stands for exactly."""
    path = files(dataset, "S2L1C")[0]
    name = path.name.removesuffix("_S2Hand.tif")
    for version in ("v1", "v2"):
        (path.parent / f"{name}_{version}_S2Hand.tif").write_bytes(path.read_bytes())
    path.unlink()


def every_fifth(names: Iterable[str]) -> list[Any]:
    """Return the names; four of five are for the slow tests."""
    return [name if index % 5 == 0 else pytest.param(name, marks=pytest.mark.slow) for index, name in enumerate(names)]


def plan(dataset: SimulatedDataset, changes: Mapping[str, Any] | None = None) -> DataPlan:
    """Return what the usual configuration reads.

    Args:
        dataset: Its data.
        changes: Of the configuration; data.class_path may be a class.
    """
    from terramind_plugin.data.datamodule import TerraMindDataModule

    config = change(segmentation_config(dataset), changes or {})["data"]
    kind = TerraMindDataModule if isinstance(config["class_path"], str) else config["class_path"]
    found = describe_data(kind(**config["init_args"]))
    assert found is not None
    return found


def look(dataset: SimulatedDataset, changes: Mapping[str, Any] | None = None) -> list[Finding]:
    """Return what the check of the data alone finds, 'ok' left out; arguments as in `plan`."""
    task = change(segmentation_config(dataset), changes or {})["model"]["init_args"]
    grid = PatchGrid(16, "reflect")  # of TerraTorch's factory with a published model
    found = check_data(plan(dataset, changes), ignored=task["ignore_index"], loss=task["loss"], grid=grid)
    return [finding for finding in found if finding.verdict != "ok"]
