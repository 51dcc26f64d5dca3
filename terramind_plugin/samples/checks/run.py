"""All checks of data, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from terramind_plugin.samples.checks.files import Grid, check_folders, check_headers, check_overlap, check_splits
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.headers import read_headers
from terramind_plugin.samples.checks.labels import check_labels, read_labels
from terramind_plugin.samples.checks.sample import read_sample
from terramind_plugin.samples.checks.values import check_values
from terramind_plugin.samples.plan import DataPlan


def check_data(
    plan: DataPlan,
    *,
    samples: int = 64,
    ignored: float | None = None,
    loss: str = "",
    weighted: bool = False,
    grid: Grid | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Finding]:
    """Yield a finding for each mistake, and for each group one that says what was looked at.

    Args:
        plan: What the configuration says.
        samples: How many samples to read pixels of, at most.
        ignored: The task's ignore_index.
        loss: Name of the task's loss.
        weighted: Whether the task has weights for its classes.
        grid: The sizes that the model takes; None if unknown.
        say: Is told what begins.
    """
    yield from check_folders(plan)
    yield from check_splits(plan)
    say(f"reading the headers of {sum(len(files) for s in plan.splits for files in s.samples.values())} files")
    headers = read_headers(plan)
    yield from check_headers(plan, headers, grid)
    yield from check_overlap(plan, headers)
    counts = ", ".join(f"{len(split.samples)} {split.name}" for split in plan.splits)
    yield Finding("files", "ok", f"{len(headers)} files of {counts} samples listed, headers read.")
    say(f"reading the pixels of up to {samples} samples")
    sample = read_sample(plan, samples)
    yield from check_values(plan, sample)
    yield Finding("values", "ok", f"pixels of {sample.read} of {sample.of} samples read.")
    say("reading labels")
    masks = read_labels(plan)
    yield from check_labels(plan, masks, ignored, loss, weighted)
    if masks:
        yield Finding("labels", "ok", f"{len(masks)} files read.")


def check_cheaply(plan: DataPlan, samples: int = 8) -> Iterator[Finding]:
    """Yield what is wrong with the values of a few samples; takes well under a second for usual chips.

    Args:
        plan: What the configuration says.
        samples: How many.
    """
    yield from check_values(plan, read_sample(plan, samples))
