"""Check of the configured means and standard deviations against the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.sample import Summary, pooled
from terramind_plugin.samples.plan import ImagePlan

LOOKALIKES = {
    "TerraMind 0.1": {
        "S2L2A": (794.311, 925.161, 1183.128, 1338.041, 1667.254, 2233.633, 2460.96, 2555.569, 2619.542, 2703.298,
                  2406.497, 1841.645),
        "DEM": (435.726,),
    },
    "the TerraMesh data set": {"RGB": (110.349, 99.507, 75.843), "DEM": (651.663,)},
}  # fmt: skip
"""Means that are often used in place of the pre-training means of TerraMind 1.0, by origin.

Source: terramind_register.py of TerraTorch; terramesh.py of the TerraMesh data set.
"""


def check_statistics(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield findings about means and stds that are missing, belong to another modality, or are far from the data."""
    where = f"values: {image.name} statistics"
    if not image.means or not image.stds:
        yield Finding(
            where,
            "error",
            "no means and stds: the values are not standardised.",
            "Use the same names in modalities, means and stds.",
        )
        return
    if len(image.means) != len(image.stds) or min(image.stds) <= 0:
        yield Finding(
            where, "error", f"{len(image.means)} means and stds {list(image.stds)}.", "Give each mean a positive std."
        )
        return
    yield from _check_whose(image, where)
    if not summaries or (image.modality is not None and image.modality.kind == "classes"):
        return
    pixels = pooled(image, summaries)
    if len(pixels) != len(image.means):
        yield Finding(
            where,
            "error",
            f"{len(image.means)} means for {len(pixels)} bands.",
            "Give one mean and one std for each band, or leave means and stds out.",
        )
        return
    away = np.abs(np.median(pixels, axis=1) - image.means) / image.stds
    if away.max() > 4:
        band = image.bands[int(away.argmax())] if image.bands else f"band {int(away.argmax()) + 1}"
        yield Finding(
            where,
            "warning",
            f"the median of {band} is {away.max():.1f} standard deviations from the configured mean.",
            "Compare with terramind compute_statistics.",
        )


def _check_whose(image: ImagePlan, where: str) -> Iterator[Finding]:
    own = image.modality
    if own is None:
        return
    for other in MODALITIES.values():
        if other.name == own.name or len(other.bands) != len(image.means) or other.kind != "image":
            continue
        if np.allclose(image.means, other.mean, rtol=1e-3) and not np.allclose(
            image.means, own.mean[: len(image.means)]
        ):
            yield Finding(where, "error", f"these means are those of {other.name}.", "Leave means and stds out.")
    if len(own.bands) == len(image.means) > 1 and not np.allclose(image.means, own.mean, rtol=1e-3):
        same = np.allclose(sorted(image.means), sorted(own.mean), rtol=1e-3)
        if same and tuple(image.bands) == own.band_names:
            yield Finding(where, "error", "the means are in another order than the bands.", "Leave means and stds out.")
    for source, tables in LOOKALIKES.items():
        means = tables.get(own.name, ())
        if len(means) == len(image.means) and np.allclose(means, image.means, rtol=1e-4):
            yield Finding(
                where,
                "warning",
                f"these means are those of {source}, not of the pre-training.",
                "Leave means and stds out.",
            )
