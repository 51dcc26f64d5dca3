"""The command `simulate`; slow imports happen only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from terramind_plugin.errors import ConfigError, counted


def run_simulate(
    *,
    out: Path,
    chips: int = 60,
    size: int | None = None,
    seed: int = 0,
    world: Literal["floods", "globe", "stac"] = "floods",
    processes: int = 1,
    dates: int = 1,
    task: Literal["water", "flooded_cover"] = "water",
) -> None:
    """Make a data set of simulated scenes, or a STAC catalogue of them.

    If the command is repeated, it writes only missing files.

    Args:
        out: Folder to write to.
        chips: Number of chips.
        size: Pixels per side of a chip (default: 256), or of a tile of the catalogue (default: 768).
        seed: Seed of the random numbers; the same seed gives the same bytes.
        world: Flooded regions, places anywhere on a globe for pre-training, or a catalogue for `chips` and `map`.
        processes: Number of processes.
        dates: Dates of each chip: before the flood, at its peak, and while the water falls.
        task: Meaning of the labels: where water is, or what it covers (river, open land or woods).
    """
    from rich.progress import Progress

    if world == "stac":
        if dates != 1:
            raise ConfigError("--dates is for chips; the catalogue of --world stac has its own dates. Leave it out.")
        if task != "water":
            raise ConfigError("--task is for chips; the labels of --world stac say where water is. Leave it out.")
        _simulate_catalogue(out, size, seed)
        return
    from terramind_plugin.simulation import dataset

    with Progress() as progress:
        bar = progress.add_task(f"Simulating {chips} chips", total=chips)
        made = dataset.simulate(
            out,
            chips=chips,
            size=256 if size is None else size,
            seed=seed,
            world=world,
            processes=processes,
            dates=dates,
            task=task,
            on_chip=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    sizes = ", ".join(f"{len(ids)} {name}" for name, ids in made.splits.items())
    print(f"{counted(len(made.chip_ids), 'chip')} ({sizes}) in {made.root}")


def _simulate_catalogue(out: Path, size: int | None, seed: int) -> None:
    from rich.progress import Progress

    from terramind_plugin.simulation.catalogue import simulate_catalogue

    with Progress() as progress:
        bar = progress.add_task("Simulating scenes", total=None)
        counts = simulate_catalogue(
            out, size, seed, on_scene=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    for name, count in counts.items():
        print(f"{name}: {counted(count, 'item')}")
    print(f"{out / 'catalog.json'}, area {out / 'aoi.geojson'}, labels {out / 'labels'}")
