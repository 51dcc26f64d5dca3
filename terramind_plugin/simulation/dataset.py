"""Simulated chips on disk: data sets for demonstrations, tests and pre-training that need no download."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from terramind_plugin.errors import ConfigError, DataError, check_seed, suggest
from terramind_plugin.model.modalities import MODALITIES, Modality
from terramind_plugin.raster.complete import is_complete
from terramind_plugin.raster.writer import parse_color, write_geotiff
from terramind_plugin.simulation.chip import SMALLEST, SimulatedChip, simulate_chip
from terramind_plugin.simulation.labels import LABEL_TASKS, LabelTask
from terramind_plugin.simulation.worlds import WORLDS, World, flood_site
from terramind_plugin.system.files import write_lines, write_text
from terramind_plugin.system.parallel import make_processes

__all__ = ["WORLDS", "SimulatedDataset", "chip_files", "make_splits", "simulate", "simulate_chip"]

LONGEST_SERIES = 24
"""Maximum number of dates of a simulated series."""
_VERSION = 1  # raise it when the same parameters give other chips
_PARAMETERS_FILE = "simulation.json"
_PRODUCTS = ("S2L1C", "S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI", "RGB", "Label")
_SHORT = {"S2L1C": "S2", "S1GRD": "S1"}  # what Sen1Floods11 calls them in file names
_SPLITS = {"train": "flood_train_data.txt", "valid": "flood_valid_data.txt", "test": "flood_test_data.txt"}


@dataclass(frozen=True)
class SimulatedDataset:
    """Data set that `simulate` has written."""

    root: Path
    """Folder with `data`, `splits` and `simulation.json`."""
    chip_ids: tuple[str, ...]
    """Ids of all chips, by number."""
    splits: dict[str, tuple[str, ...]]
    """Ids of the chips in 'train', 'valid' and 'test', sorted."""


def chip_files(root: Path, name: str) -> dict[str, Path]:
    """Return the file of each modality of a chip, and of its 'label', in the layout of Sen1Floods11 v1.1.

    Args:
        root: Folder of the data set.
        name: Chip id.
    """
    files = {x: root / "data" / f"{x}Hand" / f"{name}_{_SHORT.get(x, x)}Hand.tif" for x in _PRODUCTS}
    return {key.replace("Label", "label"): path for key, path in files.items()}


def make_splits(chips: int, seed: int, world: World = flood_site) -> dict[str, tuple[str, ...]]:
    """Return about 70 % of the chips for training, 15 % for validation, 15 % for test, drawn evenly from all regions.

    Args:
        chips: Number of chips, at least 3.
        seed: Seed of the data set.
        world: Function that chooses the place of a chip.

    Raises:
        ConfigError: There are too few chips for three splits.
    """
    if chips < 3:
        raise ConfigError(f"Cannot split {chips} chips into train, valid and test; simulate at least 3.")
    rng = np.random.default_rng([seed, chips])
    names = [world(seed, index).name for index in range(chips)]
    # Sorted by region and shuffled within it, then taken at equal steps: a stratified draw.
    order = sorted(rng.permutation(chips).tolist(), key=lambda index: names[index].split("_")[0])
    held = max(1, round(0.15 * chips))
    positions = np.floor((np.arange(2 * held) + 0.5) * chips / (2 * held)).astype(int)
    members = {"valid": {order[p] for p in positions[::2]}, "test": {order[p] for p in positions[1::2]}}
    members["train"] = set(order) - members["valid"] - members["test"]
    return {split: tuple(sorted(names[index] for index in members[split])) for split in _SPLITS}


def _layer(modality: Modality, count: int) -> dict[str, Any]:
    """Return arguments of `write_geotiff` that describe all bands of a modality, date after date."""
    dates = count // len(modality.bands)
    layer: dict[str, Any] = {"descriptions": modality.band_names * dates, "units": (modality.units,) * count}
    if modality.name in ("S1GRD", "S1RTC"):
        layer["nodata"] = float("nan")  # a number would turn measured values into NaN in readers that mask
    if modality.class_names:
        layer["colormap"] = {i: parse_color(color) for i, color in enumerate(modality.class_colors)}
        layer["tags"] = {"class_names": ", ".join(f"{i} = {name}" for i, name in enumerate(modality.class_names))}
    return layer


def _write_chip(files: dict[str, Path], chip: SimulatedChip, task: LabelTask) -> None:
    """Write all files of a chip."""
    grid: dict[str, Any] = {"crs": chip.crs, "transform": chip.transform}
    for name, image in chip.images.items():
        write_geotiff(files[name], image, **grid, **_layer(MODALITIES[name], len(image)))
    write_geotiff(
        files["label"],
        chip.label[None],
        descriptions=(task.quantity,),
        units=("class id",),
        tags={"class_names": task.describe()},  # no nodata value: readers that mask would lose the -1
        **grid,
    )


def claim_folder(root: Path, parameters: dict[str, Any]) -> None:
    """Make `root` the folder of a data set with these parameters; raise a ConfigError if it holds other files."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f"Cannot write a data set to {root}: it is a file. Choose a folder.")
    record = root / _PARAMETERS_FILE
    advice = "Choose another folder, or delete this one first."
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{record} is damaged. {advice}") from None
        if found != parameters:
            raise ConfigError(
                f"{root} already holds a data set simulated with {found}, requested {parameters}. {advice}"
            )
        return
    if any((root / folder).exists() for folder in ("data", "splits")):
        raise ConfigError(
            f"{root} already holds data that was not simulated (there is no {_PARAMETERS_FILE}). {advice}"
        )
    root.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(parameters, indent=2) + "\n")


def simulate(
    out: str | Path,
    chips: int = 60,
    size: int = 256,
    seed: int = 0,
    on_chip: Callable[[int, int], None] | None = None,
    *,
    world: str = "floods",
    processes: int = 1,
    dates: int = 1,
    task: str = "water",
) -> SimulatedDataset:
    """Write simulated scenes as GeoTIFFs in the folder layout of Sen1Floods11 v1.1, and split lists.

    The same arguments give the same bytes in every file. Called again on the same folder, it writes only what is
    missing or damaged, so an interrupted run can be continued. A globe also gets `labels.csv`: chip, biome, longitude,
    latitude.

    Args:
        out: Folder to write to; created if it does not exist.
        chips: Number of chips, at least 3. A larger data set begins with the chips of a smaller one.
        size: Side of a chip in pixels of 10 m, at least 32.
        seed: Seed, from 0 to 2**32 - 1.
        on_chip: Called after each chip with the number of finished chips and of all chips.
        world: Where the chips lie, a name in `WORLDS`.
        processes: Number of processes that share the work.
        dates: Number of dates of each chip: before the flood, at its peak, and while the water falls. A file holds all
            dates, one after the other; DEM, LULC and label have one.
        task: What the labels say, a name in `LABEL_TASKS`. The images do not depend on it.

    Raises:
        ConfigError: An argument is out of range, or the folder holds something else.
        DataError: One of the processes was killed.
    """
    root = Path(out)
    _check_arguments(world, task, size, seed, processes, dates)
    splits = make_splits(chips, seed, WORLDS[world])
    parameters: dict[str, Any] = {"version": _VERSION, "chips": chips, "size": size, "seed": seed}
    parameters |= ({} if world == "floods" else {"world": world}) | ({} if dates == 1 else {"dates": dates})
    parameters |= {} if task == "water" else {"task": task}
    claim_folder(root, parameters)
    (root / "splits").mkdir(exist_ok=True)
    for folder in {path.parent for path in chip_files(root, "").values()}:
        folder.mkdir(parents=True, exist_ok=True)
    sites = [WORLDS[world](seed, index) for index in range(chips)]
    names = tuple(site.name for site in sites)
    make = partial(_make_chip, root=root, world=world, seed=seed, size=size, dates=dates, task=task)
    with _mapper(processes) as share:
        whole = list(share(partial(_is_whole, root=root), names))
        missing = [index for index in range(chips) if not whole[index]]
        for done, _ in enumerate(share(make, missing), start=1):
            if on_chip is not None:
                on_chip(chips - len(missing) + done, chips)
    for split, file_name in _SPLITS.items():
        write_lines(root / "splits" / file_name, splits[split])
    if world == "globe":
        rows = [[site.name, site.region.name, *(f"{degrees:.5f}" for degrees in site.position)] for site in sites]
        write_lines(root / "labels.csv", [",".join(row) for row in [["chip", "label", "longitude", "latitude"], *rows]])
    return SimulatedDataset(root, names, splits)


def _check_arguments(world: str, task: str, size: int, seed: int, processes: int, dates: int) -> None:
    """Raise a ConfigError if an argument of `simulate` is out of range."""
    if world not in WORLDS:
        raise ConfigError(f"There is no world '{world}'.{suggest(world, WORLDS)} Known: {', '.join(WORLDS)}.")
    if task not in LABEL_TASKS:
        raise ConfigError(f"There is no task '{task}'.{suggest(task, LABEL_TASKS)} Known: {', '.join(LABEL_TASKS)}.")
    if size < SMALLEST:
        raise ConfigError(f"Chips of {size} pixels are too small: write a size of at least {SMALLEST}.")
    check_seed(seed)
    if processes < 1:
        raise ConfigError(f"processes must be at least 1, got {processes}.")
    if not 1 <= dates <= LONGEST_SERIES:
        raise ConfigError(f"dates must be 1 to {LONGEST_SERIES}, got {dates}.")


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a function like `map` whose calls are shared by processes."""
    if processes == 1:
        yield map
        return
    with make_processes(processes) as pool:
        try:
            yield partial(pool.map, chunksize=4)
        except BrokenProcessPool as error:
            raise DataError(
                f"One of {processes} processes was killed. Is the memory full? Run the same command again, or with "
                "fewer --processes; what is finished is kept."
            ) from error


def _is_whole(name: str, *, root: Path) -> bool:
    """Return whether all files of a chip are there and can be read to their end."""
    return all(path.is_file() and is_complete(path) for path in chip_files(root, name).values())


def _make_chip(index: int, *, root: Path, world: str, seed: int, size: int, dates: int, task: str) -> None:
    chip = simulate_chip(seed, index, size, WORLDS[world], dates, task)
    _write_chip(chip_files(root, chip.name), chip, LABEL_TASKS[task])
