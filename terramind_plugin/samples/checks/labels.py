"""Checks of label masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio

from terramind_plugin.errors import DataError, counted, one_line
from terramind_plugin.raster.bands import check_one_band
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.checks.findings import Finding, some
from terramind_plugin.samples.checks.headers import UNREADABLE, map_files
from terramind_plugin.samples.checks.sample import read_middle
from terramind_plugin.samples.layout import LABEL
from terramind_plugin.samples.plan import DataPlan

LARGEST = 8192
"""Maximum height and width in pixels that is read of a label file, from its middle."""
MOST_CLASSES = 65536
MOST = 1000
"""Maximum number of label files that are read."""
RARE = 0.02


@dataclass(frozen=True)
class Mask:
    """Class ids of one label file."""

    path: Path
    splits: tuple[str, ...]
    """Names of the splits that use the file."""
    counts: dict[float, int] = field(default_factory=dict)
    nodata: float | None = None
    problem: str = ""
    """Reason why the file cannot be used, as a sentence; empty if it can."""


def read_labels(plan: DataPlan, most: int = MOST) -> list[Mask]:
    """Return the values of at most `most` label files, drawn from all splits, with their numbers of pixels."""
    splits: dict[Path, list[str]] = {}
    for split in plan.splits:
        for path in (files[LABEL] for files in split.samples.values() if LABEL in files):
            if is_raster(path):
                splits.setdefault(path, []).append(split.name)
    jobs = [(tuple(names), path) for path, names in splits.items()]
    if len(jobs) > most:
        chosen = np.random.default_rng(0).permutation(len(jobs))[:most]
        jobs = [jobs[index] for index in sorted(chosen)]
    return map_files(_read, jobs)


def _read(job: tuple[tuple[str, ...], Path]) -> Mask:
    splits, path = job
    try:
        with rasterio.open(raster_name(path)) as raster:
            check_one_band(path, raster.count)
            if raster.dtypes[0].startswith("complex"):
                return Mask(path, splits, problem=f"{path} holds complex numbers.")
            values, counts = np.unique(read_middle(raster, [1], LARGEST).values, return_counts=True)
            return Mask(path, splits, dict(zip(values.tolist(), counts.tolist(), strict=True)), raster.nodata)
    except DataError as error:
        return Mask(path, splits, problem=one_line(error))
    except UNREADABLE as error:
        return Mask(path, splits, problem=f"{path}: {one_line(error)}.")


def check_labels(
    plan: DataPlan, masks: list[Mask], ignored: float | None, loss: str = "", weighted: bool = False
) -> Iterator[Finding]:
    """Yield findings about the labels of a segmentation task.

    Args:
        plan: The data set as configured.
        masks: Label files that were read.
        ignored: The task's ignore_index.
        loss: Name of the task's loss.
        weighted: Whether the task has weights for its classes.
    """
    broken = [mask for mask in masks if mask.problem]
    if broken:
        yield Finding("labels: readable", "error", f"{counted(len(broken), 'file')}, e.g. {broken[0].problem}")
    if plan.task != "segmentation" or not plan.num_classes:
        return
    if not 0 < plan.num_classes <= MOST_CLASSES:
        yield Finding("labels: ids", "error", f"num_classes is {plan.num_classes}.", f"Give 1 to {MOST_CLASSES}.")
        return
    shift = 1 if plan.reduce_zero_label else 0
    classes = range(shift, plan.num_classes + shift)
    masks = [mask for mask in masks if not mask.problem]
    allowed = {float(value) for value in classes} | ({float(ignored + shift)} if ignored is not None else set())
    yield from _check_ids(plan, masks, allowed, set(map(float, classes)), ignored)
    total: Counter[float] = Counter()
    for mask in masks:
        total.update(mask.counts)
    for split in ("train", "val"):
        own = [mask.counts for mask in masks if split in mask.splits]
        present = set().union(*own)
        absent = [_name(plan, value - shift) for value in classes if value not in present]
        if own and absent:
            yield Finding(
                f"labels: {split} classes",
                "warning",
                f"no pixel of {some(absent)}.",
                "Check num_classes and the split.",
            )
    empty = [mask for mask in masks if not any(value in classes for value in mask.counts)]
    if empty:
        yield Finding(
            "labels: empty",
            "warning" if len(empty) < len(masks) else "error",
            f"{len(empty)} of {len(masks)} files hold no class at all: {some([m.path.name for m in empty])}.",
            "Remove these samples: training cannot learn from them.",
        )
    yield from _check_balance(plan, [total[value] for value in classes], loss == "ce" and not weighted)


def _check_balance(plan: DataPlan, counts: list[int], unweighted: bool) -> Iterator[Finding]:
    """Yield the share of each class. If one is rare and the loss ignores that, the advice names a better loss."""
    if not sum(counts):
        return
    shares = [count / sum(counts) for count in counts]
    order = sorted(range(len(shares)), key=lambda value: -shares[value])
    seen = some([f"{shares[value]:.2%} {_name(plan, value)}" for value in order], 6)
    rarest = min((share for share in shares if share), default=1.0)
    if rarest >= RARE or not unweighted:
        yield Finding("labels: balance", "ok", f"{seen}.")
        return
    # Square roots, because with the plain inverse a class of few pixels would outweigh all others.
    raw = [share**-0.5 if share else 1.0 for share in shares]
    weights = ", ".join(f"{weight * len(raw) / sum(raw):.2f}" for weight in raw)
    advice = (
        f"Try loss: dice or focal, or class_weights: [{weights}]." if len(raw) <= 20 else "Try loss: dice or focal."
    )
    yield Finding("labels: balance", "note", f"{seen}; the loss is ce.", advice)


def _name(plan: DataPlan, value: int) -> str:
    name = f" ({plan.class_names[value]})" if value < len(plan.class_names) else ""
    return f"class {value}{name}"


def _check_ids(
    plan: DataPlan, masks: list[Mask], allowed: set[float], classes: set[float], ignored: float | None
) -> Iterator[Finding]:
    wrong = []
    colliding = []
    for mask in masks:
        if mask.nodata in classes and not (plan.reduce_zero_label and mask.nodata == 0):
            colliding.append(mask)
        for value, count in mask.counts.items():
            missing = value == mask.nodata or value != value
            value = plan.no_label_replace if missing and plan.no_label_replace is not None else value
            # With reduce_zero_label, label 0 becomes -1, and the value for missing labels is not shifted.
            fine = value in allowed or (missing and value == ignored)
            if not fine:
                wrong.append(f"{mask.path.name} {value:g} ({counted(count, 'pixel')})")
    if wrong:
        be, last = "is" if len(wrong) == 1 else "are", int(plan.num_classes or 0) - 1
        yield Finding(
            "labels: ids",
            "error",
            f"{counted(len(wrong), 'value')} in {counted(len(masks), 'file')} {be} neither 0 to {last} nor "
            f"ignore_index {ignored}: {some(wrong)}.",
            "See num_classes, ignore_index, no_label_replace and reduce_zero_label.",
        )
    if colliding:
        yield Finding(
            "labels: nodata",
            "warning" if plan.own else "error",
            f"in {counted(len(colliding), 'file')} nodata is {colliding[0].nodata:g}, which is also a class id.",
            "Remove the tag: gdal_edit.py -unsetnodata."
            + (" Here it counts as the class." if plan.own else " TerraTorch turns the class into no label."),
        )
