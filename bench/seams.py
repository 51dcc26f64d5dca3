"""Visibility of windows in a map: `python -m bench.seams FILE --crop 224 --stride 176 --margin 8 --patch 16`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from terramind_plugin.inference.windows import Axis, Plan, plan_windows


def measure_seams(values: NDArray, plan: Plan, patch: int = 16) -> float:
    """Return the mean jump between neighbouring pixels at borders of windows, divided by the mean jump elsewhere.

    Only borders of patches are compared, since windows usually begin at one, and since a decoder may show them. A ratio
    of 1 means that the borders of windows cannot be seen; NaN means that there is one window.

    Args:
        values: Continuous map [H, W] without its NaN, or class ids, where a jump is a change of class.
        plan: The windows of the map.
        patch: Height and width of a patch in pixels.
    """
    at_borders, elsewhere = [], []
    for axis, image in ((plan.rows, values), (plan.columns, values.T)):
        if image.dtype.kind in "ui":
            jumps = (image[1:] != image[:-1]).astype(np.float64)
        else:
            jumps = np.abs(np.diff(image.astype(np.float64), axis=0))
        borders = _borders(axis)
        places = np.arange(1, axis.length)
        comparable = np.isin(places % patch, np.unique(borders % patch))
        is_border = np.isin(places, borders)
        at_borders.append(jumps[is_border].ravel())
        elsewhere.append(jumps[comparable & ~is_border].ravel())
    return float(np.nanmean(np.concatenate(at_borders)) / np.nanmean(np.concatenate(elsewhere)))


def _borders(axis: Axis) -> NDArray[np.int64]:
    """Return the first pixels of windows and those after the last, without the edges of the image."""
    ends = {end for index in range(len(axis.starts)) for end in axis.used(index)}
    return np.array(sorted(ends - {0, axis.length}), dtype=np.int64)


def main() -> None:
    """Print the measure of each band."""
    parser = argparse.ArgumentParser("python -m bench.seams", description="Jump at window borders by jump elsewhere.")
    parser.add_argument("file", type=Path)
    for name, default in (("crop", 224), ("stride", 176), ("margin", 8), ("patch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with rasterio.open(options.file) as raster:
        image, names = raster.read(), raster.descriptions
    steps = {"multiple": options.patch, "align": options.patch}
    plan = plan_windows(*image.shape[1:], options.crop, options.stride, options.margin, **steps)
    for name, band in zip(names, image, strict=True):
        print(f"{name or 'band'}: {measure_seams(band, plan, options.patch):.3f}")


if __name__ == "__main__":
    main()
