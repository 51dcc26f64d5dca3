"""Check of the band order of Sentinel-2 files against the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.sample import Summary
from terramind_plugin.samples.plan import ImagePlan

MARGIN = 0.3
"""Minimum share of the missing correlation that another band order must recover before it is suggested."""
SMALLEST_GAIN = 0.02
"""Minimum difference of mean correlations; smaller ones are ignored."""
BY_RESOLUTION = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09", "B10")
SPECTRUM = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
"""Bands by wavelength, without the water vapour and cirrus bands, which show the atmosphere."""


def check_order(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield a finding if the bands seem to be in another order than configured."""
    found = find_order(image, summaries)
    if found is not None:
        yield Finding(
            f"values: {image.name} band order",
            "warning",
            f"the bands look like {found[0]}, not like {', '.join(image.file_bands)}.",
            f"Name the bands of the files in their order in dataset_bands: {{{image.name}: [...]}} "
            "and those of the model in output_bands.",
        )


def find_order(image: ImagePlan, summaries: Sequence[Summary]) -> tuple[str, list[str]] | None:
    """Return the most plausible order of the bands, as a text and as names, or None if it is the configured one.

    In a plausible order, neighbours in the spectrum are correlated and the cirrus band is the darkest.
    """
    modality = image.modality
    if modality is None:
        return None
    places = [modality.find_band(band) for band in image.file_bands]
    if None in places or len(set(places)) < len(places) or len(places) < 4:
        return None
    names = [modality.band_names[index] for index in places if index is not None]
    usable = [s.pixels for s in summaries if len(s.pixels) == len(names) and s.pixels.shape[1] > 50]
    if not usable:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = np.nanmedian([np.nan_to_num(np.corrcoef(pixels)) for pixels in usable], axis=0)
    levels = np.median([np.median(pixels, axis=1) for pixels in usable], axis=0)
    orders = _orders(names)
    scores = {text: _fit(order, alike, levels) for text, order in orders.items()}
    best = max(scores, key=lambda text: scores[text])
    if best and scores[best] - scores[""] > max(MARGIN * (1 - scores[""]), SMALLEST_GAIN):
        return best, orders[best]
    return None


def _orders(names: list[str]) -> dict[str, list[str]]:
    """Return common orders of bands by description; '' is the configured one."""
    by_file_name = sorted(name for name in names if name != "B8A") + (["B8A"] if "B8A" in names else [])
    result = {
        "": names,
        "those of an alphabetical list, B8A last": by_file_name,
        "those in reverse": names[::-1],
        "those by resolution, 10, 20, 60 m": [name for name in BY_RESOLUTION if name in names],
        "those with B10 last": sorted(names, key=lambda name: name == "B10"),
    }
    return {text: order for text, order in result.items() if not text or order != names}


def _fit(order: list[str], alike: NDArray[Any], levels: NDArray[Any]) -> float:
    """Return the mean correlation of neighbours in the spectrum, if the bands are in this order."""
    place = {name: index for index, name in enumerate(order)}
    present = [name for name in SPECTRUM if name in place]
    score = float(np.mean([alike[place[a], place[b]] for a, b in pairwise(present)]))
    if "B10" in place:
        score -= 0.0 if levels.argmin() == place["B10"] else 0.5
    return score
