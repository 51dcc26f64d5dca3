"""The imaginary regions: numbers that give a chip its character."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Region:
    """Ranges from which the properties of a chip are drawn, uniformly."""

    name: str
    """First part of the chip ids."""
    epsg: int
    """UTM zone of the region."""
    northing: float
    """Northing of the region's first chip, m."""
    altitude: Range
    """Height of the river above the sea, m."""
    steepness: Range
    """Slope of a hillside cell that nothing drains into; 0.3 is mountainous, 0.01 a plain."""
    valley: Range
    """Half width of the flat valley floor, m."""
    micro_relief: Range
    """Standard deviation of small-scale height differences on the valley floor, m."""
    river_width: Range
    """Width of the main river, m."""
    meander: Range
    """Largest angle between river and valley, radian."""
    side_channels: tuple[int, int]
    """Number of further arms and cut-off loops: fewest, most."""
    flooded: Range
    """Share of the chip under water at the time of the images."""
    farmland: float
    """Share of suitable land that is farmed."""
    woodland: float
    """Share of the rest that is wooded."""
    greenness: Range
    """Vigour of vegetation: 0 withered, 1 lush."""
    soil_red: Range
    """Redness of the soil: 0 grey, 1 red."""
    dry: float
    """Share of barren land (sand, salt flats, dry lakes) in uncultivated lowland."""
    snow_line: float
    """Height above which snow lies, m."""


REGIONS: tuple[Region, ...] = (
    Region("Delta", 32646, 2_430_000, (1, 8), (0.004, 0.010), (900, 2500), (0.5, 0.9), (90, 260), (0.5, 1.1),
           (1, 3), (0.16, 0.48), 0.75, 0.25, (0.7, 1.0), (0.0, 0.3), 0.05, 9000),
    Region("Valley", 32632, 5_080_000, (250, 1600), (0.7, 1.6), (200, 420), (0.4, 0.9), (25, 60), (0.4, 0.9),
           (0, 1), (0.08, 0.24), 0.60, 0.55, (0.6, 1.0), (0.1, 0.4), 0.04, 1700),
    Region("Plain", 32633, 5_320_000, (60, 250), (0.010, 0.035), (400, 1100), (0.5, 0.9), (40, 110), (0.8, 1.6),
           (1, 3), (0.12, 0.42), 0.88, 0.35, (0.5, 1.0), (0.1, 0.6), 0.03, 9000),
    Region("Basin", 32736, 7_900_000, (300, 900), (0.025, 0.10), (400, 1000), (0.4, 0.8), (40, 140), (0.5, 1.2),
           (0, 2), (0.08, 0.34), 0.35, 0.12, (0.2, 0.7), (0.4, 1.0), 0.28, 9000),
)  # fmt: skip
"""Chip number i lies in region i modulo 4."""
