"""All checks of data, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from terramind_plugin.errors import counted
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.samples.checks.files import PatchGrid, check_folders, check_headers, check_splits
from terramind_plugin.samples.checks.findings import Finding, worst
from terramind_plugin.samples.checks.headers import read_headers
from terramind_plugin.samples.checks.labels import check_labels, read_labels
from terramind_plugin.samples.checks.locations import check_overlap
from terramind_plugin.samples.checks.sample import read_sample
from terramind_plugin.samples.checks.values import check_values
from terramind_plugin.samples.plan import DataPlan

FINE_TUNING_KEYS = (
    "allow_missing_modalities", "constant_scale", "dataset_bands", "ignore_empty_pixels",
    "no_data_replace", "offsets", "stds",
)  # fmt: skip
"""Arguments of the fine-tuning data module that some advice names and pre-training lacks."""
FEW_SAMPLES = 8
"""Number of samples of the check before each training."""


def check_data(
    plan: DataPlan,
    *,
    samples: int = 64,
    ignored: float | None = None,
    loss: str = "",
    weighted: bool = False,
    grid: PatchGrid | None = None,
    taken: DatesTaken | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Finding]:
    """Yield a finding for each mistake, and a summary for each group of checks.

    Args:
        plan: The data set as configured.
        samples: Maximum number of samples whose pixels are read.
        ignored: The task's ignore_index.
        loss: Name of the task's loss.
        weighted: Whether the task has weights for its classes.
        grid: Sizes that the model accepts; None if unknown.
        taken: Number of dates that the model expects; None for any.
        say: Called with a text before each part of the work.
    """
    found = [*check_folders(plan), *check_splits(plan)]
    say(f"reading the headers of {sum(len(files) for _, _, files in plan.chips())} files")
    headers = read_headers(plan)
    found += [*check_headers(plan, headers, grid, taken), *check_overlap(plan, headers)]
    counts = ", ".join(f"{len(split.samples)} {split.name}" for split in plan.splits)
    yield from _with_summary(
        plan, found, "files", f"{counted(len(headers), 'file')} of {counts} samples listed, headers read."
    )
    say(f"reading the pixels of up to {samples} samples")
    sample = read_sample(plan, samples)
    found = list(check_values(plan, sample))
    if sample.read or found:
        yield from _with_summary(plan, found, "values", f"pixels of {sample.read} of {sample.of} samples read.")
    say("reading labels")
    masks = read_labels(plan)
    found = list(check_labels(plan, masks, ignored, loss, weighted))
    if masks or found:
        yield from _with_summary(plan, found, "labels", f"{counted(len(masks), 'file')} read.")


def _with_summary(plan: DataPlan, found: list[Finding], group: str, looked_at: str) -> Iterator[Finding]:
    """Yield the findings of a group and, if none is an error or a warning, its summary."""
    for finding in found:
        if plan.pretraining and any(key in finding.advice for key in FINE_TUNING_KEYS):
            finding = replace(finding, advice="Change the files: pre-training reads them as the modality table says.")
        yield finding
    if worst(found) in ("ok", "note"):
        yield Finding(group, "ok", looked_at)


def check_cheaply(plan: DataPlan) -> Iterator[Finding]:
    """Yield findings about the values of a few samples. For chips of usual size this takes less than a second."""
    yield from check_values(plan, read_sample(plan, FEW_SAMPLES))
