"""Sentinel-1's measurements: backscatter of the surface, wind on the water, relief, speckle, noise of the receiver."""

from __future__ import annotations

import numpy as np

from terramind_plugin.simulation import materials as table
from terramind_plugin.simulation.landcover import Cover
from terramind_plugin.simulation.materials import ID
from terramind_plugin.simulation.noise import FloatArray, fractal, ramp, smooth
from terramind_plugin.simulation.terrain import INSIDE, PIXEL, Flood, Terrain

_LOOKS = 5.0
"""Equivalent number of looks of Sentinel-1 IW GRD, high resolution. Source: ESA product specification, 4.4 to 4.9."""
_LOWEST, _HIGHEST = -50.0, 15.0
_SPECKLE_BLUR = 0.6  # pixels; neighbouring GRD pixels share looks: 10 m posting, 20 m resolution


def _decibel(power: FloatArray) -> FloatArray:
    return np.asarray(np.clip(10 * np.log10(np.maximum(power, 1e-9)), _LOWEST, _HIGHEST), np.float32)


def _speckle(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Return multiplicative speckle of mean 1 and variance 1 / `_LOOKS`, correlated over neighbouring pixels."""
    probe = np.zeros((9, 9), np.float32)
    probe[4, 4] = 1
    averaging = float((smooth(probe, _SPECKLE_BLUR) ** 2).sum())
    looks = _LOOKS * averaging
    white = rng.standard_gamma(looks, shape).astype(np.float32) / np.float32(looks)
    return np.stack([smooth(band, _SPECKLE_BLUR) for band in white])


def _relief_gain(height: FloatArray, look: float, incidence: float) -> FloatArray:
    """Return backscattered power on a slope relative to flat ground, [H, W].

    Slopes that face the radar put more ground into one pixel; slopes that face away fade into shadow. The height is in
    m, the look direction in radian clockwise from north, the incidence angle on flat ground in radian.
    """
    dy, dx = np.gradient(height, PIXEL)
    rise = dx * np.sin(look) - dy * np.cos(look)  # ground that rises away from the radar faces it
    local = np.clip(incidence - np.arctan(rise), 0.12, np.deg2rad(89))
    gain = (np.sin(incidence) / np.sin(local)) * np.cos(local) / np.cos(incidence)
    return np.asarray(np.clip(gain, 0.02, 8.0), np.float32)


def _backscatter(rng: np.random.Generator, cover: Cover, flood: Flood) -> FloatArray:
    """Return backscatter of the surface, power [2, H, W], on flat ground and without speckle."""
    material, shape = cover.material, cover.material.shape
    grain = rng.standard_normal(shape, dtype=np.float32) * 0.8 + 0.6 * fractal(rng, shape, 1.3, 14)
    texture = table.RADAR_TEXTURE[material] * grain
    moist = table.SOIL[material] * flood.wetness * 3.5 + rng.uniform(-0.5, 1.0)  # rain in the days before
    open_water = np.isin(material, (ID["clear water"], ID["flood water"]))
    calm = rng.random() < 0.75
    wind = rng.uniform(-0.8, 0.8) if calm else rng.uniform(3, 7)
    gusts = np.clip(1 + 0.35 * fractal(rng, shape, 2, 50), 0, 2)
    fetch = 0.35 + 0.65 * ramp(smooth(open_water, 4.0), 0.3, 1.0)  # waves need open water
    waves = np.where(open_water, wind * gusts * fetch, 0)
    field = 1.2 * (cover.brightness - 1) / 0.08  # fields differ in roughness
    decibels = np.empty((2, *shape), np.float32)
    for pol, (roughening, wetting) in enumerate(((1.0, 1.0), (0.4, 0.8))):
        land = table.BACKSCATTER[:, pol][material] + wetting * moist + 0.6 * field
        decibels[pol] = np.where(open_water, table.BACKSCATTER[:, pol][material] + roughening * waves, land) + texture
    return np.stack([smooth(10 ** (band / 10), 0.6) for band in decibels])


def observe_radar(
    rng: np.random.Generator, terrain: Terrain, cover: Cover, flood: Flood
) -> tuple[FloatArray, FloatArray]:
    """Return what Sentinel-1 measures: S1GRD and S1RTC, each [2, H, W] (VV, VH) in dB.

    GRD is sigma0 and carries the relief; RTC is gamma0, flattened with an elevation model and resampled, so that only
    errors of that model remain. Both come from one overpass and share their speckle. The margin is cut off.
    """
    shape = cover.material.shape
    look = np.deg2rad(rng.choice([78.0, 282.0]))  # ascending or descending orbit, looking right
    incidence = np.deg2rad(rng.uniform(31, 44))
    ground = np.where(flood.water, smooth(terrain.elevation, 4.0), terrain.elevation)
    gain = _relief_gain(smooth(ground, 0.8), look, incidence)
    power = _backscatter(rng, cover, flood) * (np.cos(incidence) / np.cos(np.deg2rad(38.0)))
    speckle = _speckle(rng, (2, *shape))
    floor = 10 ** (np.asarray([-27.0, -29.0], np.float32) / 10 + rng.uniform(-0.1, 0.2))[:, None, None]
    grd = (power * gain + floor) * speckle
    modelled = _relief_gain(smooth(ground, 1.3), look, incidence)
    flattened = grd / (np.maximum(modelled, 0.15) * np.cos(incidence))
    rtc = np.stack([smooth(band, 0.45) for band in flattened])
    return _decibel(grd[INSIDE]), _decibel(rtc[INSIDE])


def swath_gap(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return where the radar's swath ends, True = outside, bool [H, W]: a wedge at one side of few chips."""
    outside = np.zeros(shape, bool)
    if rng.random() > 0.08:
        return outside
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    tilt = rng.choice([-0.21, 0.21])  # the orbit is inclined to the meridian
    edge = columns + tilt * (rows - shape[0] / 2)
    outside = edge < rng.uniform(0.04, 0.16) * shape[1]
    return outside if rng.random() < 0.5 else np.ascontiguousarray(outside[:, ::-1])
