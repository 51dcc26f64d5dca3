"""The table of surface materials: how bright each is in every Sentinel-2 band and in both Sentinel-1 polarisations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WATER, TREES, FLOODED_VEGETATION, CROPS, BUILT, BARE, SNOW, RANGELAND = 1, 2, 3, 4, 5, 6, 7, 9
"""Class ids of the LULC modality."""


@dataclass(frozen=True)
class Material:
    """One kind of surface."""

    name: str
    lulc: int
    """Class id in the LULC modality when there is no flood."""
    reflectance: tuple[float, ...]
    """Surface reflectance in B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12 (the bands of S2L2A), per mille."""
    vv: float
    """Backscatter sigma0 in VV at 38 degrees incidence, dB."""
    vh: float
    """Backscatter sigma0 in VH, dB."""
    plant: float = 0.0
    """Share of the reflectance that comes from green plants: scales with their vigour; the rest of it is soil."""
    soil: float = 0.0
    """Share of bare soil: darkens in the optics and brightens in the radar when wet."""
    optical_texture: float = 0.06
    """Relative standard deviation of the reflectance."""
    radar_texture: float = 0.4
    """Standard deviation of the backscatter without speckle, dB."""
    when_flooded: tuple[str, float, str] = ("flood water", 0.0, "flood water")
    """Material under shallow water, the depth in m where it changes, material under deeper water."""


# Source of the numbers: rounded typical values. Reflectance after the USGS Spectral Library Version 7 (Kokaly et al.
# 2017) and the ECOSTRESS library, resampled by eye to the Sentinel-2 bands; backscatter after Ulaby and Dobson,
# Handbook of Radar Scattering Statistics for Terrain (1989), C band, and the flood literature (smooth water and dry
# sand near -20 dB in VV, double bounce of flooded trunks and walls several dB above the dry state).
_EMERGENT = ("flooded crops", 0.2, "flood water")
MATERIALS = (
    Material("clear water", WATER, (30, 36, 44, 29, 24, 14, 13, 10, 8, 6, 4, 3), -21.5, -29, 0, 0, 0.04, 0.3),
    Material("flood water", WATER, (62, 80, 112, 128, 122, 92, 90, 74, 66, 45, 14, 8), -21, -28.5, 0, 0, 0.04, 0.3),
    Material("broadleaf trees", TREES, (18, 24, 50, 29, 80, 240, 310, 340, 360, 360, 170, 75), -9, -14.5, 0.8, 0, 0.14,
             0.8, ("flooded trees", 3.0, "flooded trees")),
    Material("conifers", TREES, (14, 19, 32, 22, 50, 135, 165, 182, 190, 190, 90, 40), -10, -15.5, 0.5, 0, 0.14, 0.8,
             ("flooded trees", 3.0, "flooded trees")),
    Material("green crop", CROPS, (25, 34, 75, 40, 120, 340, 430, 460, 480, 480, 220, 110), -11, -17.5, 1, 0, 0.05,
             0.4, _EMERGENT),
    Material("tall crop", CROPS, (25, 33, 65, 36, 100, 290, 370, 400, 420, 420, 175, 78), -9.5, -15.5, 0.9, 0, 0.06,
             0.4, ("flooded crops", 1.1, "flood water")),
    Material("stubble", CROPS, (55, 74, 115, 150, 190, 230, 250, 270, 290, 300, 330, 240), -12, -20, 0, 0.6, 0.06,
             0.4, _EMERGENT),
    Material("ploughed soil", CROPS, (60, 76, 103, 130, 150, 165, 178, 192, 206, 216, 280, 240), -11, -20, 0, 1, 0.06),
    Material("smooth soil", CROPS, (66, 83, 113, 142, 162, 178, 192, 206, 220, 230, 300, 255), -18, -26, 0, 0.6, 0.05),
    Material("waterlogged soil", CROPS, (46, 58, 78, 88, 90, 86, 84, 76, 70, 60, 36, 22), -7.5, -16.5, 0, 0, 0.12,
             0.6),
    Material("meadow", RANGELAND, (30, 42, 80, 60, 120, 260, 310, 330, 350, 350, 240, 140), -13, -20, 1, 0, 0.08, 0.5,
             _EMERGENT),
    Material("dry grass", RANGELAND, (60, 75, 105, 136, 165, 200, 220, 240, 260, 270, 330, 250), -13.5, -21, 0.2, 0.5,
             0.09, 0.6),
    Material("houses", BUILT, (90, 108, 128, 143, 155, 175, 190, 200, 205, 205, 215, 190), -4, -12, 0, 0, 0.3, 2.5,
             ("flooded houses", 9.0, "flooded houses")),
    Material("large roofs", BUILT, (215, 255, 290, 315, 325, 335, 345, 355, 360, 360, 370, 350), 0, -9, 0, 0, 0.3, 3,
             ("large roofs", 9.0, "large roofs")),
    Material("tarmac", BUILT, (72, 78, 87, 93, 98, 104, 108, 113, 117, 120, 135, 125), -20, -27.5, 0, 0, 0.06, 0.4),
    Material("sand", BARE, (140, 178, 238, 288, 308, 325, 340, 355, 368, 376, 440, 410), -20, -28.5, 0, 0.1, 0.05),
    Material("rock", BARE, (90, 110, 135, 155, 165, 175, 185, 195, 200, 205, 240, 220), -10, -18, 0, 0.2, 0.12, 0.9),
    Material("salt flat", BARE, (260, 305, 360, 395, 415, 428, 438, 445, 450, 450, 400, 340), -19.5, -28, 0, 0.1,
             0.05),
    Material("snow", SNOW, (900, 920, 910, 890, 870, 850, 830, 810, 770, 700, 110, 90), -15, -22, 0, 0, 0.04),
    Material("flooded trees", TREES, (18, 25, 44, 31, 60, 175, 222, 240, 250, 245, 85, 38), -5.5, -13.5, 0.5, 0, 0.14,
             0.9),
    Material("flooded crops", CROPS, (36, 46, 72, 62, 84, 150, 180, 198, 205, 195, 70, 36), -7, -18, 0.4, 0, 0.1, 0.9),
    Material("flooded houses", BUILT, (72, 90, 112, 120, 122, 118, 122, 120, 120, 105, 85, 70), -1.5, -11, 0, 0, 0.3,
             2.5),
)  # fmt: skip

ID = {material.name: index for index, material in enumerate(MATERIALS)}
"""Material id by name."""
REFLECTANCES = np.asarray([m.reflectance for m in MATERIALS], np.float32) / 1000
"""Reflectance of every material, [M, 12]."""
BACKSCATTER = np.asarray([(m.vv, m.vh) for m in MATERIALS], np.float32)
"""Backscatter of every material, dB, [M, 2]."""
LULC_OF = np.asarray([m.lulc for m in MATERIALS], np.uint8)
PLANT = np.asarray([m.plant for m in MATERIALS], np.float32)
SOIL = np.asarray([m.soil for m in MATERIALS], np.float32)
OPTICAL_TEXTURE = np.asarray([m.optical_texture for m in MATERIALS], np.float32)
RADAR_TEXTURE = np.asarray([m.radar_texture for m in MATERIALS], np.float32)
SHALLOW = np.asarray([ID[m.when_flooded[0]] for m in MATERIALS], np.uint8)
SHALLOW_LIMIT = np.asarray([m.when_flooded[1] for m in MATERIALS], np.float32)
DEEP = np.asarray([ID[m.when_flooded[2]] for m in MATERIALS], np.uint8)
