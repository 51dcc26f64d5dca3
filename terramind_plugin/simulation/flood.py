"""The flood: how far the water reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from terramind_plugin.simulation.noise import BoolArray, FloatArray, fractal, ramp, smooth
from terramind_plugin.simulation.regions import Region
from terramind_plugin.simulation.terrain import INSIDE, Terrain

_NO_FLOOD = 0.07  # share of the chips that were imaged before or after the flood
_HIGHEST_STAGE = 9.0  # m above the normal river level


@dataclass(frozen=True)
class Flood:
    """Water at the time of the images. All arrays are [H, W]."""

    water: BoolArray
    """True where water covers the ground, permanent or flood."""
    depth: FloatArray
    """Depth of the flood water, m; negative above it."""
    wetness: FloatArray
    """How wet the soil of dry land is: 1 where the flood has just left, 0 far above it."""
    stage: float
    """Height of the flood above the normal river level, m."""


def _without_small(mask: BoolArray, smallest: int) -> BoolArray:
    """Return `mask` without connected parts of fewer than `smallest` pixels."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    keep = np.bincount(parts.ravel()) >= smallest
    keep[0] = False
    return keep[parts]


def make_flood(rng: np.random.Generator, region: Region, terrain: Terrain) -> Flood:
    """Return the water of a scene: the river, and all ground lower than the flood stage above it.

    The stage is chosen such that the flood covers a share of the chip that is typical of the region.

    Args:
        rng: Source of randomness.
        region: Gives the range of that share.
        terrain: Ground and rivers.
    """
    target = rng.uniform(*region.flooded)
    happens = rng.random() > _NO_FLOOD
    local = 0.12 * fractal(rng, terrain.river.shape, 2, 60)  # wind set-up and obstacles tilt a real water surface
    above = terrain.height_above_river + local
    share = min(max(target, float(terrain.river[INSIDE].mean()) + 0.02), 0.6)
    reached = np.where(terrain.river, -1.0, above)[INSIDE]
    stage = min(float(np.quantile(reached, share)), _HIGHEST_STAGE) if happens else -0.5
    flooded = _without_small(terrain.river | (above < stage), 14)
    flooded = ~_without_small(~flooded, 8)
    depth = smooth(np.where(terrain.river, stage + 1.5, stage - above), 0.6)
    recent = 1 - ramp(above, max(stage, 0), max(stage, 0) + 0.9)
    patches = ramp(fractal(rng, terrain.river.shape, 1.8, 40), -0.2, 1.0)
    return Flood(
        water=flooded | terrain.river,
        depth=depth,
        wetness=(recent * (0.35 + 0.65 * patches) * (terrain.slope < 0.08)).astype(np.float32),
        stage=stage,
    )
