"""Sentinel-2's measurements: reflectance of the surface, sunlight, clouds, atmosphere, optics of the sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation import materials as table
from terramind_plugin.simulation.landcover import Cover
from terramind_plugin.simulation.materials import ID
from terramind_plugin.simulation.noise import FloatArray, fractal, ramp, smooth
from terramind_plugin.simulation.terrain import INSIDE, PIXEL, Flood, Terrain
from terramind_plugin.simulation.worlds import Region

Counts = NDArray[np.uint16]
"""Digital numbers: reflectance x 10000, [bands, H, W]."""

# One entry per band of S2L2A (B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12). Source: typical values for a
# mid-latitude summer atmosphere with the sun at 40 degrees from the zenith, after Vermote et al. (6S, 1997).
_PATH = np.asarray([105, 76, 43, 24, 19, 14, 11, 8, 6, 3, 1, 0.4], np.float32) / 1000  # light scattered by clear air
_HAZE = np.asarray([50, 44, 36, 30, 28, 25, 24, 21, 20, 8, 9, 6], np.float32) / 1000  # ... by haze of unit strength
_TRANSMISSION = np.asarray([78, 83, 86, 90, 91, 92, 93, 92, 95, 38, 95, 92], np.float32) / 100
_CLOUD = np.asarray([700, 710, 700, 700, 705, 710, 715, 715, 715, 380, 480, 370], np.float32) / 1000
# Blur by the point spread function, in pixels of 10 m, for native pixels of 10, 20 and 60 m.
_BLUR = np.asarray([2.2, 0.55, 0.55, 0.55, 0.95, 0.95, 0.95, 0.55, 0.95, 2.2, 0.95, 0.95], np.float32)
_SOIL_RED = np.asarray([-35, -28, -12, 12, 16, 18, 18, 17, 15, 15, 12, 12], np.float32) / 100
_CIRRUS_BAND = MODALITIES["S2L1C"].band_index("B10")
_LARGEST = MODALITIES["S2L1C"].valid_range[1]


@dataclass(frozen=True)
class Sky:
    """Sunlight and clouds. Arrays are [H, W]."""

    sun_azimuth: float
    """Azimuth of the sun, radian clockwise from north."""
    sun_elevation: float
    """Height of the sun above the horizon, radian."""
    cloud: FloatArray
    """Opacity of the clouds, 0 to 1."""
    shadow: FloatArray
    """Share of the direct sunlight that clouds take away, 0 to 1."""
    cirrus: FloatArray
    """Reflectance of thin high clouds."""
    haze: FloatArray
    """Strength of haze."""


def _cloud_opacity(rng: np.random.Generator, shape: tuple[int, int], kind: str | None = None) -> FloatArray:
    """Return cloud opacity 0 to 1 [H, W]: many scenes are clear, few are nearly overcast."""
    drawn = rng.choice(["clear", "few", "broken", "overcast"], p=[0.42, 0.2, 0.26, 0.12])
    kind = str(drawn) if kind is None else kind
    if kind == "clear":
        return np.zeros(shape, np.float32)
    cover = {"few": rng.uniform(0.04, 0.14), "broken": rng.uniform(0.15, 0.45), "overcast": rng.uniform(0.5, 0.85)}[
        kind
    ]
    density = fractal(rng, shape, 1.75, rng.uniform(35, 130))
    edge = np.quantile(density, 1 - cover)
    thickness = smooth(np.maximum(density - edge, 0), 1.0) * rng.uniform(1.5, 4.5)
    return np.asarray(1 - np.exp(-(thickness**1.5)), np.float32)


def make_sky(rng: np.random.Generator, region: Region, shape: tuple[int, int], clouds: str | None = None) -> Sky:
    """Return sun, clouds with their shadows, and haze of a scene.

    Args:
        rng: Random numbers.
        region: Where the scene lies.
        shape: Height and width in pixels.
        clouds: 'clear', 'few', 'broken' or 'overcast'; None draws one.
    """
    # In the morning the sun stands in the south-east, or in the north-east on the southern hemisphere.
    southern = region.epsg // 100 == 327
    azimuth = np.deg2rad(rng.uniform(25, 70) if southern else rng.uniform(120, 165))
    elevation = np.deg2rad(rng.uniform(32, 62))
    cloud = _cloud_opacity(rng, shape, clouds)
    reach = rng.uniform(14, 42)  # pixels from a cloud to its shadow
    shift = (reach * np.cos(azimuth), -reach * np.sin(azimuth))  # away from the sun; rows run south
    shadow = smooth(ndimage.shift(cloud, shift, order=1, mode="mirror"), 1.2) if cloud.any() else cloud
    cirrus = np.zeros(shape, np.float32)
    if rng.random() < 0.25:
        cirrus = rng.uniform(0.01, 0.05) * ramp(fractal(rng, shape, 2.2, 130), -1.0, 1.5)
    haze = rng.gamma(1.6, 0.35) * (1 + 0.15 * fractal(rng, shape, 2.4, 150))
    return Sky(float(azimuth), float(elevation), cloud, shadow, cirrus, np.maximum(haze, 0).astype(np.float32))


def _surface_reflectance(rng: np.random.Generator, region: Region, cover: Cover, flood: Flood) -> FloatArray:
    """Return the reflectance [12, H, W] of the surface under even light, at the full resolution of the scene."""
    material, shape = cover.material, cover.material.shape
    red = rng.uniform(*region.soil_red)
    spectra = table.REFLECTANCES.copy()
    reddening = 1 + red * _SOIL_RED[None] * np.maximum(table.SOIL, 0.4 * (table.LULC_OF == table.BARE))[:, None]
    spectra *= reddening
    soil = spectra[ID["ploughed soil"]]
    # Suspended sediment makes the river anything between clear and as brown as the flood, and the flood clears up.
    murky = np.clip(rng.uniform(0, 0.9) + 0.15 * fractal(rng, shape, 2.2, 80), 0, 1)
    murky = np.where(material == ID["flood water"], 0.35 + 0.65 * murky, murky)
    plant = table.PLANT[material] * (1 - cover.vigour) * 0.8
    dry = 1 - 0.5 * flood.wetness * table.SOIL[material]
    grain = 0.6 * rng.standard_normal(shape, dtype=np.float32) + 0.8 * fractal(rng, shape, 1.2, 12)
    gain = dry * np.clip(1 + table.OPTICAL_TEXTURE[material] * grain, 0.3, 2.5)
    is_water = np.isin(material, (ID["clear water"], ID["flood water"]))
    gain = np.where(is_water, gain, gain * cover.brightness).astype(np.float32)
    bottom = np.where(is_water, 0.3 * np.exp(-np.maximum(flood.depth, 0) / 0.25), 0).astype(np.float32)
    glint = rng.gamma(1.2, 0.004)
    out = np.empty((12, *shape), np.float32)
    clear, brown, mud = (spectra[ID[name]] for name in ("clear water", "flood water", "waterlogged soil"))
    for band in range(12):
        land = spectra[:, band][material]
        land = land + plant * (soil[band] - land)
        water = clear[band] + murky * (brown[band] - clear[band]) + glint
        water = water + bottom * (mud[band] - water)
        out[band] = np.where(is_water, water, land) * gain
    return out


def _illumination(terrain: Terrain, flood: Flood, sky: Sky) -> FloatArray:
    """Return light on the ground relative to flat ground, [H, W]: Lambert's law plus light from the sky."""
    height = smooth(terrain.elevation, 0.8)
    dy, dx = np.gradient(height, PIXEL)
    dy, dx = np.where(flood.water, 0, dy), np.where(flood.water, 0, dx)
    horizontal, vertical = np.cos(sky.sun_elevation), np.sin(sky.sun_elevation)
    toward = -dx * np.sin(sky.sun_azimuth) + dy * np.cos(sky.sun_azimuth)
    cosine = (vertical + horizontal * toward) / np.sqrt(1 + dx**2 + dy**2)
    return np.asarray(0.2 + 0.8 * np.clip(cosine / vertical, 0, 2.2), np.float32)


def _digitise(rng: np.random.Generator, reflectance: FloatArray) -> Counts:
    """Return digital numbers of reflectance [bands, H, W] with sensor noise; at least 1, since 0 means no data."""
    noise = rng.standard_normal(reflectance.shape, dtype=np.float32)
    noisy = reflectance + noise * (0.0008 + 0.006 * np.abs(reflectance))
    return np.clip(np.rint(noisy * 10000), 1, _LARGEST).astype(np.uint16)


def observe_optical(
    rng: np.random.Generator, region: Region, terrain: Terrain, cover: Cover, flood: Flood, sky: Sky | None = None
) -> tuple[Counts, Counts]:
    """Return what Sentinel-2 measures: S2L1C [13, H, W] and S2L2A [12, H, W], reflectance x 10000.

    L1C has the light scattered by air and haze, and the whole effect of the relief; L2A is corrected for most of it.
    Clouds and their shadows are in both. The margin of the scene is cut off. A sky is drawn if none is given.
    """
    shape = cover.material.shape
    sky = make_sky(rng, region, shape) if sky is None else sky
    surface = _surface_reflectance(rng, region, cover, flood)
    light = _illumination(terrain, flood, sky)
    direct = 1 - 0.78 * sky.shadow
    billows = 1 + 0.10 * fractal(rng, shape, 1.5, 18)
    l2a = np.empty_like(surface)
    l1c = np.empty((13, *shape), np.float32)
    l1c_bands = [b for b in range(13) if b != _CIRRUS_BAND]
    for band, target in enumerate(l1c_bands):
        sharp = smooth(surface[band] * light * direct, float(_BLUR[band]))
        cloud_light = _CLOUD[band] * billows
        air = _PATH[band] + _HAZE[band] * sky.haze
        top = air + _TRANSMISSION[band] * (1 - 0.06 * sky.haze) * sharp + sky.cirrus
        l1c[target] = top + sky.cloud * (cloud_light - top)
        flat = sharp / np.sqrt(light) + 0.25 * _HAZE[band] * (sky.haze - 0.3) + 0.8 * sky.cirrus
        l2a[band] = flat + sky.cloud * (1.06 * cloud_light - flat)
    # Water vapour swallows everything below the high clouds.
    l1c[_CIRRUS_BAND] = 0.0012 + 0.9 * sky.cirrus + 0.012 * sky.cloud
    return _digitise(rng, l1c[INSIDE]), _digitise(rng, l2a[INSIDE])
