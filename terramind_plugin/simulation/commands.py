"""The commands of the simulated data set; heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from terramind_plugin.errors import counted


def run_simulate(
    *,
    out: Path,
    chips: int = 60,
    size: int = 256,
    seed: int = 0,
    world: Literal["floods", "globe"] = "floods",
    processes: int = 1,
) -> None:
    """Make a data set of simulated scenes.

    The same command again writes what is missing.

    Args:
        out: Folder to write to.
        chips: Number of chips.
        size: Pixels per side of a chip.
        seed: Same seed, same bytes.
        world: Regions that flood, or places anywhere on a globe for pre-training.
        processes: Number of processes that share the work.
    """
    from rich.progress import Progress

    from terramind_plugin.simulation import dataset

    with Progress() as progress:
        bar = progress.add_task(f"Simulating {chips} chips", total=chips)
        made = dataset.simulate(
            out,
            chips=chips,
            size=size,
            seed=seed,
            world=world,
            processes=processes,
            on_chip=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    sizes = ", ".join(f"{len(ids)} {name}" for name, ids in made.splits.items())
    print(f"{counted(len(made.chip_ids), 'chip')} ({sizes}) in {made.root}")


def run_figure(
    *, data: Path, predictions: Path, out: Path, chips: int = 4, class_names: list[str] | None = None
) -> None:
    """Draw inputs, labels and predictions of some chips as a PNG.

    Args:
        data: folder with S2L1CHand, LabelHand, ...
        predictions: Folder that predict wrote.
        out: Picture to write.
        chips: Number of chips.
        class_names: Names of the classes in their order (default: Land,Water).
    """
    from terramind_plugin.simulation.figure import draw_predictions

    draw_predictions(data, predictions, out, chips=chips, class_names=class_names or ["Land", "Water"])
    print(out)
