"""Findings of `terramind check` about shards: numbers, missing modalities, missing pixels, offsets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError, counted
from terramind_plugin.model.modalities import Modality
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.values import DN_OFFSET, holds_offset
from terramind_plugin.shards.samples import TerraMeshSamples

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
    seen = _Seen()
    try:
        for number in order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]:
            sample = samples.read(int(number))
            if sample is not None:
                seen.add(sample.key, sample.images, catalogue.modalities)
    except DataError as error:
        yield Finding(f"shards: {split} samples", "error", str(error))
        return
    yield from seen.describe_gaps(split)
    yield from seen.describe_offsets(split)
    if samples.skipped:
        text = ", ".join(f"{reason}: {number}" for reason, number in samples.skipped.items())
        yield Finding(f"shards: {split} skipped", "warning", f"{text}.")


@dataclass
class _Seen:
    """Counts over the samples that were read."""

    read: int = 0
    """Number of samples."""
    gaps: Counter[str] = field(default_factory=Counter)
    """Number of samples with missing pixels, by modality."""
    empty: Counter[str] = field(default_factory=Counter)
    """Number of samples without any data, by modality."""
    offsets: dict[str, list[bool | None]] = field(default_factory=lambda: defaultdict(list))
    """Whether each sample has the offset, by optical modality; None if unknown."""
    mixed: list[str] = field(default_factory=list)
    """Samples in which one optical modality has the offset and the other does not."""

    def add(self, key: str, images: Mapping[str, NDArray[Any]], modalities: Mapping[str, Modality]) -> None:
        """Add a sample to the counts.

        Args:
            key: Name of the sample.
            images: Images [bands, H, W] by name.
            modalities: Modality of each name.
        """
        self.read += 1
        found = {}
        for name, image in images.items():
            missing = ~np.isfinite(image)
            self.gaps[name] += bool(missing.any())
            self.empty[name] += bool(missing.all())
            if modalities[name].name in OPTICAL_LEVELS:
                low = np.percentile(image.reshape(len(image), -1), 1, axis=1)
                found[name] = holds_offset(low, modalities[name].band_names)
        for name, offset in found.items():
            self.offsets[name].append(offset)
        if len(found) == 2 and None not in found.values() and len(set(found.values())) == 2:
            self.mixed.append(key)

    def describe_gaps(self, split: str) -> Iterator[Finding]:
        """Yield a finding on each modality with missing pixels."""
        advice = "They are set to the mean; an image of NaN alone counts as missing."
        for name, number in self.gaps.items():
            if number:
                text = f"{name}: {number} of {self.read} samples read have missing pixels (NaN), {self.empty[name]} "
                yield Finding(f"shards: {split} gaps", "note", f"{text}hold nothing else.", advice)

    def describe_offsets(self, split: str) -> Iterator[Finding]:
        """Yield a finding on the offset of each optical modality."""
        advice = "Read as published: the date does not tell whether there is an offset, so none is removed."
        for name, found in self.offsets.items():
            yes, no = found.count(True), found.count(False)
            text = f"{name}: {yes} of {len(found)} samples read have the offset of +{DN_OFFSET}, {no} do not."
            if self.mixed:
                text += f" S2L1C and S2L2A differ in {len(self.mixed)}, e.g. {self.mixed[0]}."
            yield Finding(f"shards: {split} offset", "note", text, advice)
