"""Loading: time of a sample of a training batch, beside bare reads of its files and TerraTorch's own data module."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rasterio
import torch
from terratorch.datamodules import GenericMultiModalDataModule

from bench.measure import say
from bench.report import table
from bench.timing import Clock, Timing, time_rounds
from terramind_plugin.data.datamodule import TerraMindDataModule
from terramind_plugin.data.transforms import build_transforms
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation.dataset import chip_files, simulate

REAL = Path(__file__).parents[2] / "shared" / "data" / "sen1floods11"
"""Real chips; there is one with all files."""
BATCH = 8
"""Samples of a batch, and of the data set."""
SIDE = 512
"""Height and width of a chip in pixels."""
CROP = 224
"""Height and width of a crop."""
BARE, THEIRS, SLOWER = "bare reads by rasterio", "TerraTorch's own", "ours, through Albumentations"
PLAIN, TURNED, CACHED = "ours, without a transform", "ours", "ours, from a warm cache"
AIMS = (
    (f"with D4 at most 1.4 times the {BARE}", "D4", TURNED, BARE, 1 / 1.4),
    ("with D4 2.3 times as fast as TerraTorch's own", "D4", TURNED, THEIRS, 2.3),
    (f"from a warm cache at most 0.33 times the {BARE}, an eighth of the 2.67 times before", "D4", CACHED, BARE, 3.0),
)
"""A sentence, the transforms, a reader, another one, and how many times as fast the first should be."""
TENSOR = {"class_path": "ToTensorV2"}
TRANSFORMS: dict[str, list[dict[str, Any]]] = {
    "D4": [{"class_path": "D4"}, TENSOR],
    "crop and D4": [
        {"class_path": "albumentations.RandomCrop", "init_args": {"height": CROP, "width": CROP}},
        {"class_path": "D4"},
        TENSOR,
    ],
}


def prepare_chips(root: Path) -> tuple[dict[str, str], str]:
    """Write chips of two modalities and labels, and return the endings of their names by folder, and what they are.

    Args:
        root: Empty folder.
    """
    endings = {"S2L1C": "_S2.tif", "S1GRD": "_S1.tif", "mask": "_label.tif"}
    chip = {"S2L1C": "S2L1CHand/*_S2Hand.tif", "S1GRD": "S1GRDHand/{}_S1Hand.tif", "mask": "LabelHand/{}_LabelHand.tif"}
    optical = next(iter(sorted(REAL.glob(chip["S2L1C"]))), None)
    if optical is not None:
        name = optical.name.removesuffix("_S2Hand.tif")
        sources = [{kind: REAL / pattern.format(name).replace("*", name) for kind, pattern in chip.items()}] * BATCH
        what = "copies of a chip of Sen1Floods11"
    else:
        data = simulate(root / "simulated", chips=BATCH, size=SIDE)
        keys = {"mask": "label"}
        sources = [
            {kind: path for kind in endings if (path := chip_files(data.root, name).get(keys.get(kind, kind)))}
            for name in data.chip_ids
        ]
        what = "simulated chips"
    for number, files in enumerate(sources):
        for kind, path in files.items():
            target = root / kind / f"c{number}{endings[kind]}"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    return {kind: endings[kind] for kind in sources[0]}, what


def make_loader(
    kind: type[GenericMultiModalDataModule], root: Path, endings: dict[str, str], transform: Any, **more: Any
) -> Any:
    """Return a training loader of the chips.

    Args:
        kind: Class of the data module.
        root: Folder of the chips.
        endings: Endings of their names by folder.
        transform: Transforms, or None.
        more: Further arguments of the data module.
    """
    names = [name for name in endings if name != "mask"]
    module = kind(
        task="segmentation",
        batch_size=BATCH,
        num_classes=2,
        modalities=names,
        means={name: list(MODALITIES[name].mean) for name in names},
        stds={name: list(MODALITIES[name].std) for name in names},
        data_root={name: str(root / name) for name in names},
        label_data_root=str(root / "mask"),
        image_grep={name: f"*{endings[name]}" for name in names},
        label_grep=f"*{endings['mask']}",
        train_transform=build_transforms(transform, names),
        rgb_indices={names[0]: [0, 1, 2]},
        no_data_replace=0.0,
        check_stackability=False,
        **more,
    )
    module.setup("fit")
    return module.train_dataloader()


def read_bare(root: Path, endings: dict[str, str]) -> None:
    """Read all files once by rasterio alone."""
    for number in range(BATCH):
        for kind, ending in endings.items():
            with rasterio.open(root / kind / f"c{number}{ending}") as file:
                file.read()


def measure_loading(root: Path, repeats: int, clock: Clock) -> tuple[dict[str, dict[str, Timing]], str]:
    """Return times of a batch by transforms and reader, and what the chips are; all take turns in random order.

    Args:
        root: Empty folder.
        repeats: Number of rounds.
        clock: What to read.

    Raises:
        AssertionError: Batches with and without cache, or those of the slower way, differ.
    """
    endings, what = prepare_chips(root)
    ours = partial(make_loader, TerraMindDataModule, root, endings, check_values=False)
    works: dict[tuple[str, str], Callable[[], Any]] = {("", BARE): partial(read_bare, root, endings)}
    works["", PLAIN] = partial(_first, ours(None))
    for name, transform in TRANSFORMS.items():
        loaders = {TURNED: ours(transform), CACHED: ours(transform, cache=root / "cache"), SLOWER: ours(transform)}
        loaders[SLOWER].dataset._straight = False
        say(f"comparing batches, {name}")
        _check_agreement(loaders)
        theirs = make_loader(GenericMultiModalDataModule, root, endings, transform)
        works |= {(name, reader): partial(_first, loader) for reader, loader in {**loaders, THEIRS: theirs}.items()}
    say("timing")
    times = time_rounds({"|".join(key): work for key, work in works.items()}, repeats, clock)
    result: dict[str, dict[str, Timing]] = {}
    for name, reader in works:
        result.setdefault(name, {})[reader] = times[f"{name}|{reader}"]
    return result, what


def _first(loader: Any) -> dict[str, Any]:
    batch: dict[str, Any] = next(iter(loader))
    return batch


def _check_agreement(loaders: dict[str, Any]) -> None:
    """Compare the batches that loaders give after one seed; the first one with a cache fills it."""
    batches = {}
    for _ in range(2):
        for reader, loader in loaders.items():
            torch.manual_seed(0)
            batches[reader] = _first(loader)
        for reader, batch in batches.items():
            for name, image in {**batch["image"], "mask": batch["mask"]}.items():
                other = {**batches[TURNED]["image"], "mask": batches[TURNED]["mask"]}[name]
                if not torch.equal(image, other):
                    raise AssertionError(f"{name} differs: {reader}.")


def verdict_lines(times: dict[str, dict[str, Timing]]) -> list[str]:
    """Return whether each aim is met."""
    lines = []
    for what, transforms, reader, other, aim in AIMS:
        reference = times[transforms].get(other) or times[""][other]
        ratio = times[transforms][reader].ratio_to(reference)[0]
        shown = f"{1 / ratio:.2f}" if "at most" in what else f"{ratio:.1f}"
        lines.append(f"- {what} — {'met' if ratio >= aim else '**missed**'} ({shown})")
    return [*lines, "- equal batches with and without cache, and through Albumentations — met (checked before timing)"]


def loading_table(times: dict[str, dict[str, Timing]]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = ["transforms", "reader", "ms a sample", "times the bare reads"]
    rows = []
    for name, readers in times.items():
        for reader, timing in readers.items():
            own = [1e3 * second / BATCH for second in timing.seconds]
            bare = [x / y for x, y in zip(timing.seconds, times[""][BARE].seconds, strict=True)]
            shown = f"{statistics.median(own):.1f} ({min(own):.1f} to {max(own):.1f})"
            rows.append([name or "none", reader, shown, f"{statistics.median(bare):.2f}"])
    return table(head, rows)
