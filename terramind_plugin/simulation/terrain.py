"""Terrain made by its rivers (a meandering main river, a drainage tree, the relief that it carves), and the flood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from terramind_plugin.simulation.noise import BoolArray, FloatArray, IntArray, fractal, ramp, smooth
from terramind_plugin.simulation.worlds import Region

PIXEL = 10.0
"""Pixel size, m."""
MARGIN = 40
"""Width in pixels of the frame that is cut off at the end, so that rivers, clouds and shadows come from outside."""
INSIDE = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
"""Index of the chip in a scene [..., H, W]."""
_NO_FLOOD = 0.07  # share of the chips that were imaged before or after the flood
_HIGHEST_STAGE = 9.0  # m above the normal river level
_STEP = 2  # the drainage tree lives on a grid this much coarser: a quarter of the nodes, and smoother valleys


@dataclass(frozen=True)
class Terrain:
    """Relief and permanent water of a scene. All arrays are [H, W]."""

    elevation: FloatArray
    """Height of the ground above the sea, m."""
    height_above_river: FloatArray
    """Height of the ground above the water level of the nearest reach of the river in normal times, m."""
    slope: FloatArray
    """Tangent of the steepest slope."""
    river_distance: FloatArray
    """Distance to the bank of the main river or one of its arms, m; negative in the water."""
    river: BoolArray
    """Water in normal times: rivers, arms, ponds and the larger brooks."""
    snow_line: float
    """Height above which snow lies, m."""


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _drifting(knots: NDArray[Any], count: int, every: float) -> NDArray[Any]:
    """Return `count` numbers that run from one knot to the next in `every` steps."""
    return np.asarray(np.interp(np.arange(count), np.arange(len(knots)) * every, knots))


def _meandering_line(
    rng: np.random.Generator, side: int, width: float, meander: float, heading: float, centre: tuple[float, float]
) -> FloatArray:
    """Return points [N, 2] (row, column; 0.5 pixels apart) of a river course through `centre`, in flow direction.

    Source: sine-generated curves, Langbein and Leopold (1966); a meander is about 12 river widths long.
    """
    step, reach = 0.5, 3.0 * side
    count = int(2 * reach / step)
    arc = np.arange(count) * step
    # Wavelength and amplitude wander along the river, otherwise it looks like a sine.
    wander = _drifting(rng.normal(0, 1, int(2 * reach // 60) + 2), count, 60 / step)
    strength = _drifting(rng.uniform(0.5, 1.1, int(2 * reach // 90) + 2), count, 90 / step)
    wavelength = max(13 * width, 45.0)
    phase = 2 * np.pi * arc / wavelength + 1.3 * wander + rng.uniform(0, 2 * np.pi)
    slow = 0.35 * np.sin(2 * np.pi * arc / (wavelength * 5.3) + rng.uniform(0, 2 * np.pi))
    direction = heading + meander * strength * np.sin(phase) + slow
    line = np.cumsum(np.stack([np.sin(direction), np.cos(direction)], 1), axis=0) * step
    line += np.asarray(centre) - line[count // 2]
    inside = np.all((line > -side * 0.3) & (line < side * 1.3), axis=1)
    return line[inside].astype(np.float32)


def _distance_to_line(shape: tuple[int, int], points: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the distance in pixels to the nearest of `points` [N, 2] and its index, each [H, W]."""
    owner = np.full(shape, -1, np.int64)
    cells = np.rint(points).astype(np.int64).clip(0, np.asarray(shape) - 1)
    owner[cells[:, 0], cells[:, 1]] = np.arange(len(points))
    near = ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    guess = owner[near[0], near[1]]
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    distance, nearest = np.full(shape, np.inf, np.float32), guess
    for step in range(-3, 4):  # the nearest cell has the nearest point or one of its neighbours
        index = (guess + step).clip(0, len(points) - 1)
        candidate = np.hypot(points[index, 0] - rows, points[index, 1] - columns)
        closer = candidate < distance
        distance, nearest = np.where(closer, candidate, distance), np.where(closer, index, nearest)
    return distance, nearest


def _drainage_tree(cost: FloatArray, outlets: BoolArray) -> IntArray:
    """Return for each cell of a grid the flat index of the cell downstream; for an outlet its own index.

    The cells form the tree of cheapest paths to the outlets: like water, paths join and follow the low ground.

    Args:
        cost: [H, W], cost of crossing a cell, positive; low in hollows.
        outlets: [H, W], True where water leaves; at least one.
    """
    height, width = cost.shape
    index = np.arange(height * width).reshape(height, width)
    starts, ends, weights = [], [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        b = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
        starts.append(index[a].ravel())
        ends.append(index[b].ravel())
        weights.append(((cost[a] + cost[b]) * np.float32(np.hypot(dy, dx))).ravel())
    graph = sparse.coo_matrix(
        (np.concatenate(weights), (np.concatenate(starts), np.concatenate(ends))), shape=(index.size, index.size)
    )
    _, downstream, _ = csgraph.dijkstra(
        graph.tocsr(), directed=False, indices=index[outlets], min_only=True, return_predecessors=True
    )
    return np.where(downstream < 0, index.ravel(), downstream).astype(np.int64)


def _sum_downstream(downstream: IntArray, value: FloatArray) -> FloatArray:
    """Return the sum of `value` [N] over the path from each cell to its outlet, which counts as 0."""
    total = np.where(downstream == np.arange(downstream.size), 0, value)
    pointer = downstream
    while np.any(pointer != pointer[pointer]):  # path doubling: log2(longest path) rounds
        total = total + total[pointer]
        pointer = pointer[pointer]
    return total


def _upstream_area(downstream: IntArray) -> FloatArray:
    """Return how many cells [N] drain through each cell, itself included."""
    hops = _sum_downstream(downstream, np.ones(downstream.size, np.float32)).astype(np.int64)
    order = np.argsort(hops, kind="stable")
    bounds = np.searchsorted(hops[order], np.arange(1, hops.max() + 2))
    area = np.ones(downstream.size, np.float64)
    for level in range(len(bounds) - 1, 0, -1):  # the farthest first
        cells = order[bounds[level - 1] : bounds[level]]
        np.add.at(area, downstream[cells], area[cells])
    return area.astype(np.float32)


def _carve(rng: np.random.Generator, region: Region, river_pixels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return height above the river (m) and distance to the nearest brook (pixels), each [H, W].

    A river in balance with uplift has slope ~ area ** -0.45 (Flint's law): adding that slope up along the drainage tree
    gives ridges, spurs and hollows at once. Close to the main river the valley floor is flat.
    """
    shape = river_pixels.shape
    coarse = river_pixels[::_STEP, ::_STEP]
    cost = np.exp(0.6 * fractal(rng, coarse.shape, 1.8, 40) + 0.12 * rng.standard_normal(coarse.shape))
    downstream = _drainage_tree(cost.astype(np.float32), coarse <= _STEP)
    area = _upstream_area(downstream)
    floor = _between(rng, region.valley) / PIXEL * np.exp(0.35 * fractal(rng, coarse.shape, 2, 120))
    hillside = ramp(coarse / np.maximum(floor, 4), 0.5, 1.6).ravel() + 0.01
    slope = _between(rng, region.steepness) * area**-0.45 * np.exp(0.3 * fractal(rng, coarse.shape, 2, 80)).ravel()
    height = _sum_downstream(downstream, slope * hillside * PIXEL * _STEP).reshape(coarse.shape)
    height = 0.5 * smooth(height, 1.0) + 0.5 * smooth(height, 2.5)
    zoom = (shape[0] / coarse.shape[0], shape[1] / coarse.shape[1])
    # Offsetting the grid by a smooth random field hides the eight directions of the tree.
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    rows += 3.0 * fractal(rng, shape, 2, 24)
    columns += 3.0 * fractal(rng, shape, 2, 24)
    at = np.stack([rows / zoom[0], columns / zoom[1]])
    height = ndimage.map_coordinates(height, at, order=1, mode="nearest")
    brooks = area.reshape(coarse.shape) > rng.uniform(250, 900)
    to_brook = ndimage.distance_transform_edt(~brooks) if brooks.any() else np.full(coarse.shape, 99.0)
    brook_distance = ndimage.map_coordinates(to_brook, at, order=1, mode="nearest") * _STEP
    return smooth(height, 0.8), brook_distance


@dataclass(frozen=True)
class _Course:
    """Courses of the main river and its arms."""

    heading: float
    width: float
    bank: FloatArray


def _make_course(rng: np.random.Generator, region: Region, size: int) -> _Course:
    """Return the main river, some arms and cut-off loops; `bank` is the distance to the nearest bank in pixels."""
    side = size + 2 * MARGIN
    width = _between(rng, region.river_width) / PIXEL
    heading = float(rng.uniform(0, 2 * np.pi))
    centre = (side / 2 + rng.uniform(-0.28, 0.28) * size, side / 2 + rng.uniform(-0.28, 0.28) * size)
    main = _meandering_line(rng, side, width, _between(rng, region.meander), heading, centre)
    swelling = _drifting(rng.normal(0, 1, len(main) // 60 + 2), len(main), 60)
    lines, widths = [main], [width * (1 + 0.25 * swelling.clip(-1.5, 2))]
    for _ in range(rng.integers(region.side_channels[0], region.side_channels[1] + 1)):
        arm_width = width * rng.uniform(0.15, 0.5)
        fork = main[int(rng.uniform(0.25, 0.75) * len(main))]
        turn = heading + rng.uniform(-0.9, 0.9)
        arm = _meandering_line(rng, side, max(arm_width, 2), region.meander[1], turn, (fork[0], fork[1]))
        start = int(rng.uniform(0.0, 0.7) * len(arm))  # a piece of an arm is a cut-off loop or a blind channel
        arm = arm[start : start + int(rng.uniform(0.15, 1.0) * len(arm)) + 8]
        lines.append(arm)
        widths.append(np.full(len(arm), arm_width))
    half_width = np.concatenate(widths).astype(np.float32) / 2
    distance, nearest = _distance_to_line((side, side), np.concatenate(lines))
    bank = distance - np.maximum(half_width[nearest] + 0.5 * fractal(rng, (side, side), 1.5, 20), 0.5)
    return _Course(heading, width, bank.astype(np.float32))


def make_terrain(rng: np.random.Generator, region: Region, size: int) -> Terrain:
    """Return the terrain of a scene, `MARGIN` pixels larger on each side than its chip of `size` pixels."""
    course = _make_course(rng, region, size)
    bank, shape = course.bank, course.bank.shape
    hills, brook_distance = _carve(rng, region, np.maximum(bank, 0))
    micro = _between(rng, region.micro_relief)
    relief = 0.8 * fractal(rng, shape, 2.2, 80) + 0.2 * fractal(rng, shape, 1.5, 16)
    # Rivers build up their banks; behind them the floor is lowest, and it rises towards the edge of the valley.
    land = np.maximum(bank, 0)
    levee = 1.1 * np.exp(-((land / (2.0 * course.width + 2)) ** 2)) * ramp(fractal(rng, shape, 2, 25), -0.8, 0.6)
    terrace = 1.6 * ramp(land * PIXEL / region.valley[0] + 0.25 * fractal(rng, shape, 2, 60), 0.25, 1.0)
    above = hills + micro * ((relief + 1.2) * (1 + 0.05 * hills) + levee + terrace)
    above = np.where(bank < 1, np.minimum(above, 0.35 * bank), above)
    above = above - micro * 1.4 * np.exp(-((brook_distance / 2.5) ** 2))  # brooks lie in ditches
    brook = (brook_distance < rng.uniform(0.9, 1.6)) & (bank > 0) & (above < 40)
    ponds = (fractal(rng, shape, 2.2, 28) > rng.uniform(2.5, 3.4)) & (above < 6)
    above = np.where(ponds, -0.5, above)

    fall = rng.uniform(0.0002, 0.001) * (1 + 10 * region.steepness[0])
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    along = (rows * np.sin(course.heading) + columns * np.cos(course.heading)) * PIXEL
    elevation = _between(rng, region.altitude) + above - fall * (along - along.mean())
    dy, dx = np.gradient(smooth(elevation, 1.0), PIXEL)
    return Terrain(
        elevation=elevation.astype(np.float32),
        height_above_river=above.astype(np.float32),
        slope=np.hypot(dy, dx).astype(np.float32),
        river_distance=(bank * PIXEL).astype(np.float32),
        river=(bank <= 0) | brook | ponds,
        snow_line=region.snow_line,
    )


def flood_levels(dates: int) -> list[float]:
    """Return the level of the flood on each date of a series: 0 before it, 1 at its peak, then falling to 0.

    Args:
        dates: Number of dates; one alone is the peak.
    """
    return (
        [1.0] if dates == 1 else [0.0, *(float(level) for level in np.linspace(1, 0, max(dates - 1, 2))[: dates - 1])]
    )


@dataclass(frozen=True)
class Flood:
    """Water at the time of the images. All arrays are [H, W]."""

    water: BoolArray
    """True where water covers the ground, permanent or flood."""
    depth: FloatArray
    """Depth of the flood water, m; negative above it."""
    wetness: FloatArray
    """Wetness of the soil: 1 where the flood has just left, 0 far above it."""
    stage: float
    """Height of the flood above the normal river level, m."""


def _without_small(mask: BoolArray, smallest: int) -> BoolArray:
    """Return `mask` without connected parts of fewer than `smallest` pixels."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    keep = np.bincount(parts.ravel()) >= smallest
    keep[0] = False
    return np.asarray(keep[parts])


def make_flood(rng: np.random.Generator, region: Region, terrain: Terrain) -> Flood:
    """Return the water of a scene: the river, and all ground lower than the flood stage above it.

    The stage is chosen such that the flood covers a share of the chip that is typical of the region.
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


def recede(flood: Flood, terrain: Terrain, level: float, *, left: bool) -> Flood:
    """Return the water of a scene at a lower level of its flood.

    Args:
        flood: The flood at its peak.
        terrain: Terrain of the scene.
        level: Share of the height of the peak above the normal river level, 0 to 1.
        left: Whether the peak is over, so that the ground which it has left is wet.
    """
    if level >= 1:
        return flood
    fall = (1 - level) * max(flood.stage, 0.0)
    depth = np.where(terrain.river, np.maximum(flood.depth - fall, 0.3), flood.depth - fall)
    water = terrain.river | (_without_small(terrain.river | (depth > 0), 14) & flood.water if level > 0 else False)
    dry = flood.water & ~water
    wetness = np.where(dry, np.float32(0.9), flood.wetness) if left else np.zeros_like(flood.wetness)
    return Flood(
        water=water, depth=np.where(water, depth, np.minimum(depth, 0)), wetness=wetness, stage=flood.stage - fall
    )
