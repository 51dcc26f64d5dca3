"""What `terramind check` says of shards: numbers, missing modalities, missing pixels, offsets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from terramind_plugin.errors import DataError, counted
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.values import DN_OFFSET, holds_offset
from terramind_plugin.shards.dataset import TerraMeshSamples

OPTICAL_LEVELS = ("S2L1C", "S2L2A")


def describe_shards(samples: TerraMeshSamples, split: str, count: int) -> Iterator[Finding]:
    """Yield findings about a split; some samples are read, spread evenly over it.

    Args:
        samples: The split.
        split: Name of the split for the findings.
        count: Maximum number of samples to read.
    """
    catalogue = samples.catalogue
    try:
        order = np.sort(samples.order(0))
    except DataError as error:
        yield Finding(f"shards: {split}", "error", str(error))
        return
    subsets = Counter(catalogue.subsets)
    shown = ", ".join(f"{number} {name}" for name, number in subsets.items())
    at = f" at revision {samples.revision}" if samples.revision else ""
    text = (
        f"{counted(len(catalogue.shards), 'shard')} ({shown}), {len(order)} of {counted(len(catalogue), 'sample')}{at}."
    )
    yield Finding(f"shards: {split}", "ok", text)
    for subset, names in catalogue.lacking.items():
        text = f"{subset} has no {', '.join(names)}: a missing modality of its samples."
        yield Finding(f"shards: {split} modalities", "note", text)
    read = 0
    offsets: dict[str, list[bool | None]] = defaultdict(list)
    gaps: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    mixed: list[str] = []
    for number in order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]:
        try:
            sample = samples.read(int(number))
        except DataError as error:
            yield Finding(f"shards: {split} samples", "error", str(error))
            return
        if sample is None:
            continue
        read += 1
        found = {}
        for name, image in sample.images.items():
            modality = catalogue.modalities[name]
            missing = ~np.isfinite(image)
            gaps[name] += bool(missing.any())
            empty[name] += bool(missing.all())
            if modality.name in OPTICAL_LEVELS:
                low = np.percentile(image.reshape(len(image), -1), 1, axis=1)
                found[name] = holds_offset(low, modality.band_names)
        for name, offset in found.items():
            offsets[name].append(offset)
        if len(found) == 2 and None not in found.values() and len(set(found.values())) == 2:
            mixed.append(sample.key)
    for name, number in gaps.items():
        if number:
            text = (
                f"{name}: {number} of {read} samples read have missing pixels (NaN), {empty[name]} hold nothing else."
            )
            yield Finding(
                f"shards: {split} gaps", "note", text, "They become the mean; a sample of NaN alone is missing."
            )
    yield from _offsets(offsets, mixed, split)
    if samples.skipped:
        text = ", ".join(f"{reason}: {number}" for reason, number in samples.skipped.items())
        yield Finding(f"shards: {split} skipped", "warning", f"{text}.")


def _offsets(offsets: dict[str, list[bool | None]], mixed: list[str], split: str) -> Iterator[Finding]:
    """Yield a finding on the offset of each optical modality."""
    for name, found in offsets.items():
        yes, no = found.count(True), found.count(False)
        text = f"{name}: {yes} of {len(found)} samples read have the offset of +{DN_OFFSET}, {no} have not."
        if mixed:
            text += f" S2L1C and S2L2A differ in {len(mixed)}, e.g. {mixed[0]}."
        advice = "Read as published: the date does not tell, so nothing is taken away."
        yield Finding(f"shards: {split} offset", "note", text, advice)
