"""Small data sets of TerraMesh's layout: made up, or real chips packed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio

from terramind_plugin.model.modalities import resolve
from terramind_plugin.shards.writer import write_sample, write_shard

TYPES = {
    "S2L2A": "i2", "S2L1C": "i2", "S2RGB": "u1", "S1GRD": "f2", "S1RTC": "f2", "DEM": "i2", "NDVI": "f2", "LULC": "u1",
}  # fmt: skip
"""Types in which TerraMesh publishes its modalities."""
LAYOUT = {"majortom_shard_000001": 5, "majortom_shard_000002": 4, "ssl4eos12_shard_000001": 3}
"""Samples of each shard."""
SIDE = 24


def folders_of(shard: str) -> list[str]:
    """Return the modalities of a shard: Major TOM has S1RTC, SSL4EO-S12 has S1GRD."""
    return [name for name in TYPES if name != ("S1GRD" if shard.startswith("majortom") else "S1RTC")]


def values_of(number: int, folder: str, side: int = SIDE) -> np.ndarray:
    """Return the pixels [bands, H, W] of a made-up sample; some of radar and NDVI are NaN."""
    random = np.random.default_rng([number, list(TYPES).index(folder)])
    modality, dtype = resolve(folder), np.dtype(TYPES[folder])
    shape = (len(modality.bands), side, side)
    if dtype.kind == "f":
        made = random.normal(-12 if folder.startswith("S1") else 0.3, 0.2, shape).astype(dtype)
        made[:, :2, :3] = np.nan
        return made
    high = 10 if folder == "LULC" else 255 if folder == "S2RGB" else 3000
    return random.integers(0, high, shape).astype(dtype)


def bands_of(folder: str) -> list[str]:
    names = resolve(folder).band_names
    return [name.lower() for name in names] if folder.startswith("S1") else list(names)


def member(number: int, folder: str, values: np.ndarray | None = None, side: int = SIDE, **more) -> bytes:
    """Return one member of a shard."""
    values = values_of(number, folder, side) if values is None else values
    place = {"left": 500000.0 + 2640 * number, "top": 5000000.0, "epsg": 32632, "centre": centre_of(number)}
    given = {"sample": f"{number}U_1R_0_0", "times": [number * 86400 * 10**9], **place, **more}
    return write_sample(values, given.pop("bands", bands_of(folder)), **given)


def centre_of(number: int) -> tuple[float, float]:
    return 9.0 + number, 45.0 + number / 2


def key_of(shard: str, split: str, number: int) -> str:
    return f"{shard.partition('_')[0]}_{split}_{number + 1:07d}"


def pack(root: Path, split: str = "val", layout=LAYOUT, folders=None, side: int = SIDE) -> dict[str, int]:
    """Write a made-up data set and return the number of each sample by its key."""
    keys, number = {}, 0
    for shard, count in layout.items():
        names = [name for name in folders_of(shard) if folders is None or name in folders]
        with write_shard(root, split, shard, names) as writer:
            for _ in range(count):
                key = key_of(shard, split, number)
                writer.add(key, {folder: member(number, folder, side=side) for folder in names})
                keys[key] = number
                number += 1
    return keys


def pack_real(chips: Path, root: Path, split: str = "val", repeats: int = 1, folders=None) -> dict[str, str]:
    """Pack real chips of 224 pixels, widened to 264 by mirrored pixels, and return the chip of each key."""
    names = sorted(path.name for path in chips.iterdir() if folders is None or path.name in folders)
    ids = sorted(path.stem for path in (chips / "S2L2A").glob("*.tif"))
    keys = {}
    with write_shard(root, split, "majortom_shard_000001", names) as writer:
        for number, name in enumerate(ids * repeats):
            key = key_of("majortom_shard_000001", split, number)
            members = {}
            for folder in names:
                with rasterio.open(chips / folder / f"{name}.tif") as raster:
                    values = raster.read().astype(TYPES[folder])
                    left, top, code = raster.transform.c - 200, raster.transform.f + 200, raster.crs.to_epsg()
                wide = np.pad(values, ((0, 0), (20, 20), (20, 20)), mode="reflect")
                place = {"left": left, "top": top, "epsg": code, "centre": (10.0, 50.0)}
                members[folder] = write_sample(wide, bands_of(folder), sample=name, **place)
            writer.add(key, members)
            keys[key] = name
    return keys
