"""Broken data, each derived from sound ones by one mistake: the mistake is named, with its verdict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.transform import Affine, from_origin

from terramind_plugin.simulation.dataset import simulate
from tests.check.spoiling import (
    Broken,
    described,
    every,
    every_fifth,
    look,
    moved,
    one,
    others,
    raw,
    rewrite,
    same_ground,
    second_file,
    train_list,
)
from tests.check.spoiling import files as files_of

S1, S2, LABEL = "S1GRD", "S2L1C", "Label"
NEW_OFFSET = np.uint16(1000)
ESRI = np.array([0, 1, 2, 4, 5, 7, 8, 9, 10, 11], np.uint8)
# Positions of the table's bands in files of another order.
ALPHABETICAL = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 8]
BY_RESOLUTION = [1, 2, 3, 7, 4, 5, 6, 8, 11, 12, 0, 9, 10]
CIRRUS_LAST = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 10]


def nan(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, np.nan)


def scattered(values: np.ndarray, value: float, every_nth: int) -> np.ndarray:
    """Return the values with some pixels replaced in all bands."""
    flat = values.reshape(len(values), -1).copy()
    flat[:, ::every_nth] = value
    return flat.reshape(values.shape)


def upper(values: np.ndarray, value: float) -> np.ndarray:
    """Return the values with the upper eighth replaced in all bands."""
    return np.concatenate([np.full_like(values[:, :8], value), values[:, 8:]], axis=1)


def terratorch(**more: Any) -> dict[str, Any]:
    """Return changes to TerraTorch's own data module."""
    from terratorch.datamodules import GenericMultiModalDataModule

    from terramind_plugin.model.modalities import MODALITIES

    tables = {name: MODALITIES[name] for name in (S2, S1)}
    return {
        "data.class_path": GenericMultiModalDataModule,
        "data.means": {name: list(table.mean) for name, table in tables.items()},
        "data.stds": {name: list(table.std) for name, table in tables.items()},
        "data.predict_split": ...,
        **{f"data.{key}": value for key, value in more.items()},
    }


FILES: dict[str, Broken] = {
    "no folder": Broken("files: folders", "error", "/nowhere does not exist",
                        changes={"data.label_data_root": "/nowhere"}),
    "suffix": Broken("files: train split", "error", "lack a file of some modality.*S2L1C.*image_grep",
                     changes={"data.image_grep": {S2: "*_S2hand.tif", S1: "*_S1Hand.tif"}}),
    "label suffix": Broken("files: train split", "error", r"\(label\).*label_grep",
                           changes={"data.label_grep": "*_label.tif"}),
    "nothing matches": Broken("files: train split", "error", "no sample",
                              changes={"data.image_grep": {S2: "*.jp2", S1: "*.jp2"}, "data.train_split": ...}),
    "no list": Broken("files: splits", "error", "test has no split file and takes every file",
                      changes={"data.test_split": ...}),
    "list is missing": Broken("files: train split", "error", "/nowhere.txt does not exist",
                              changes={"data.train_split": "/nowhere.txt"}),
    "empty list": Broken("files: train split", "error", "names no sample", train_list(lambda t, v: "\n\n")),
    "list in UTF-16": Broken("files: train split", "error", "not UTF-8", train_list(lambda t, v: t, "utf-16")),
    "id without file": Broken("files: train split", "error", r"1 of 9 ids.*Nowhere_1 \(S2L1C, S1GRD, label\)",
                              train_list(lambda t, v: t + "Nowhere_1\n")),
    "ids with suffix": Broken("files: train split", "error", "8 of 8 ids lack a file",
                              train_list(lambda t, v: t.replace("\n", "_S2Hand.tif\n"))),
    "radar file missing": Broken("files: train split|files: val split|files: test split", "error",
                                 r"1 of \d ids.*\(S1GRD\)", lambda d: files_of(d, S1)[0].unlink()),
    "label file missing": Broken("files: train split|files: val split|files: test split", "error",
                                 r"1 of \d ids.*\(label\)", lambda d: files_of(d, LABEL)[0].unlink()),
    "several files": Broken("files: train split|files: val split|files: test split", "error",
                            "stand for several files.*_v1_S2Hand.tif", second_file),
    "ids in two splits": Broken("files: splits", "error", "2 ids are in train and val", train_list(lambda t, v: t + v)),
    "ids twice": Broken("files: train split", "warning", "8 ids more than once", train_list(lambda t, v: t + t)),
    "blank lines": Broken("files: train split", "note", "2 blank lines, skipped",
                          train_list(lambda t, v: t + "\n\n")),
    "blank lines, TerraTorch's": Broken("files: train split", "error", "each one adds a wrong sample",
                                        train_list(lambda t, v: t + "\n\n"), "terratorch"),
    "Windows line ends": Broken("files: train split", "note", "Windows line ends",
                                train_list(lambda t, v: t.replace("\n", "\r\n"))),
    "too large a batch": Broken("files: train split", "error", "8 samples do not fill one batch of 50",
                                changes={"data.batch_size": 50}),
    "same ground": Broken("files: overlap in space", "warning", "1 chip of val shows ground of train", same_ground),
    "truncated": Broken("files: readable", "error", "1 of 36 files.*Copy or download", raw(S2, lambda b: b[:-4000])),
    "empty file": Broken("files: readable", "error", "1 of 36 files", raw(S1, lambda b: b"")),
    "no GeoTIFF": Broken("files: readable", "error", "not recognized", raw(LABEL, lambda b: b"<html>404</html>")),
    "damaged block": Broken("values: readable", "error", "1 file",
                            raw(S2, lambda b: b[: len(b) // 2] + b"\xff" * 2000 + b[len(b) // 2 + 2000 :])),
    "size of one image": Broken("files: pairs differ in size", "error", r"\[48, 64\]", one(S2, lambda v: v[:, :48])),
    "size of labels": Broken("files: pairs differ in size", "error", "12 samples",
                             every(LABEL, lambda v: v[:, ::2, ::2])),
    "CRS of one": Broken("files: pairs differ in crs", "warning", "1 sample", one(S1, crs="EPSG:3857")),
    "shifted label": Broken("files: pairs differ in place", "warning", "5 pixels apart", moved(LABEL, 5)),
    "20 m grid": Broken("files: pairs differ in place", "warning", "pixels apart",
                        lambda d: rewrite(files_of(d, S1)[0], transform=_coarser(files_of(d, S1)[0]))),
    "mixed sizes": Broken("files: train sizes|files: val sizes|files: test sizes", "error", "mixed sizes",
                          lambda d: [one(kind, lambda v: v[:, :48])(d) for kind in (S2, S1, LABEL)]),
    "sizes of 50": Broken("files: train sizes", "note", r"\[64, 50\]: TerraTorch pads them .*to \[64, 64\]",
                          lambda d: [every(kind, lambda v: v[:, :, :50])(d) for kind in (S2, S1, LABEL)]),
    "12 bands": Broken("files: S2L1C bands", "error", "12 files do not have 13 bands", every(S2, lambda v: v[:12])),
    "one band in one": Broken("files: S1GRD bands", "error", "1 of 12 files do not have 2 bands",
                              one(S1, lambda v: v[:1])),
    "names of other bands": Broken("files: S1GRD band names", "error",
                                   "12 of 12 files: .* as VH, HH, expected VV, VH.*rio edit-info --bidx 1",
                                   described(S1, ("VH", "HH"))),
    "names against dataset_bands": Broken("files: S1GRD band names", "error",
                                          r"as VH, VV, but dataset_bands: \{S1GRD: \[VV, VH\]\}",
                                          described(S1, ("VH", "VV")), {"data.dataset_bands": {S1: ["VV", "VH"]}}),
    "names and TerraTorch": Broken("files: S1GRD band names", "warning", "reads bands by position",
                                   described(S1, ("VH", "VV")), "terratorch"),
    "pixels without a size": Broken("files: places", "warning", "12 of 36 files have pixels without a size.*a_ullr",
                                    every(S1, transform=Affine(10, 0, 5e5, 0, 0, 5e6))),
}  # fmt: skip

VALUES: dict[str, Broken] = {
    "0 to 1": Broken("values: S2L1C units", "error", r"all of them.*not multiplied by 10000.*constant_scale",
                     every(S2, lambda v: (v / 10000).astype(np.float32))),
    "0 to 1 in one": Broken("values: S2L1C units", "error", "1 of 12 files.*all need one unit",
                            one(S2, lambda v: (v / 10000).astype(np.float32))),
    "0 to 255": Broken("values: S2L1C units", "error", "8 bits",
                       every(S2, lambda v: np.clip(v // 40, 1, 255).astype(np.uint8))),
    "offset in one": Broken("values: S2L1C offset", "warning", "1 of 12 files have the offset",
                            one(S2, lambda v: v + NEW_OFFSET)),
    "offset lacks in one": Broken("values: S2L1C offset", "warning", "1 of 12 files lack",
                                  others(S2, lambda v: v + NEW_OFFSET)),
    "offset in all": Broken("values: S2L1C offset", "warning", "12 of 12 files have the offset",
                            every(S2, lambda v: v + NEW_OFFSET)),
    "linear power": Broken("values: S1GRD units", "error", "linear power.*log10", every(S1, lambda v: 10 ** (v / 10))),
    "linear power in one": Broken("values: S1GRD units", "error", "1 of 12 files",
                                  one(S1, lambda v: 10 ** (v / 10))),
    "amplitude": Broken("values: S1GRD units", "error", "amplitudes", every(S1, lambda v: 1e3 * 10 ** (v / 20))),
    "VV and VH swapped": Broken("values: S1GRD polarisations", "error", "12 of 12.*swapped.*dataset_bands",
                                every(S1, lambda v: v[::-1])),
    "VV and VH swapped in one": Broken("values: S1GRD polarisations", "error", "1 of 12", one(S1, lambda v: v[::-1])),
    "bands by file name": Broken("values: S2L1C band order", "warning", "alphabetical",
                                 every(S2, lambda v: v[ALPHABETICAL])),
    "bands by resolution": Broken("values: S2L1C band order", "warning", "by resolution",
                                  every(S2, lambda v: v[BY_RESOLUTION])),
    "cirrus last": Broken("values: S2L1C band order", "warning", "B10 last", every(S2, lambda v: v[CIRRUS_LAST])),
    "bands reversed": Broken("values: S2L1C band order", "warning", "reverse", every(S2, lambda v: v[::-1])),
    "all NaN": Broken("values: S1GRD gaps", "warning", "1 of 12 files are all NaN", one(S1, nan)),
    "everything NaN": Broken("values: S1GRD gaps", "error", "12 of 12 files are all NaN", every(S1, nan)),
    "one band NaN": Broken("values: S1GRD gaps", "warning", "1 file has empty bands",
                           one(S1, lambda v: np.concatenate([nan(v[:1]), v[1:]]))),
    "much NaN": Broken("values: S1GRD gaps", "note", "have no data.*set to the mean",
                       every(S1, lambda v: scattered(v, np.nan, 4))),
    "NaN, TerraTorch's": Broken("values: S1GRD gaps", "error", "no_data_replace is not set",
                                every(S1, lambda v: scattered(v, np.nan, 50)), "terratorch"),
    "NaN becomes 0 dB": Broken("values: S1GRD gaps", "warning", "take 0, .* standard deviations from the mean",
                               every(S1, lambda v: scattered(v, np.nan, 50)), {"data.no_data_replace": 0}),
    "zeros": Broken("values: S2L1C gaps", "warning", "1 of 12 files have pixels that are 0 in all bands.*a_nodata 0",
                    one(S2, lambda v: upper(v, 0))),
    "one value in a band": Broken("values: S2L1C constant", "warning", "1 file has constant bands .B01",
                                  one(S2, lambda v: np.concatenate([np.full_like(v[:1], 1500), v[1:]]))),
    "no data as a number": Broken("values: S1GRD gaps", "error", "12 of 12 files hold -9999.*a_nodata",
                                  every(S1, lambda v: upper(v, -9999))),
    "heights in feet": Broken("values: DEM heights", "error", "look like feet",
                              every("DEM", lambda v: v * np.float32(20 / 0.3048)), {"with": "DEM"}),
    "heights in whole feet": Broken("values: DEM heights", "error", "look like feet",
                                    every("DEM", lambda v: np.round(np.round(v) / 0.3048)), {"with": "DEM"}),
    "heights of -32768": Broken("values: DEM heights", "error", "-32768.*a_nodata",
                                every("DEM", lambda v: upper(v, -32768)), {"with": "DEM"}),
    "ESRI's codes": Broken("values: LULC classes", "error", "ESRI",
                           every("LULC", lambda v: ESRI[v.astype(int)]), {"with": "LULC"}),
    "WorldCover's codes": Broken("values: LULC classes", "error", "values 10",
                                 every("LULC", lambda v: (v * 10).astype(np.uint8)), {"with": "LULC"}),
    "NDVI of 0 to 200": Broken("values: NDVI units", "error", "stretched to whole numbers",
                               every("NDVI", lambda v: np.round(np.clip(v, -1, 1) * 100 + 100)), {"with": "NDVI"}),
    "colours of 0 to 1": Broken("values: RGB units", "error", "colours from 0 to 1",
                                every("RGB", lambda v: v / np.float32(255)), {"with": "RGB"}),
    "L2A with offset in one": Broken("values: S2L2A offset", "warning", "1 of 12 files have",
                                     one("S2L2A", lambda v: v + NEW_OFFSET), {"with": "S2L2A"}),
    "L2A by file name": Broken("values: S2L2A band order", "warning", "alphabetical",
                               every("S2L2A", lambda v: v[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 8]]), {"with": "S2L2A"}),
    "infinite values": Broken("values: S1GRD not finite", "warning",
                              "12 of 12 files hold values that are infinite or beyond 1e30, .*by NaN",
                              every(S1, lambda v: scattered(v, np.inf, 5))),
    "a fill value that is not declared": Broken("values: S1GRD not finite", "warning",
                                                "1 of 12 files .*-3.4e.38. They count as missing.*a_nodata -3",
                                                one(S1, lambda v: scattered(v, np.float32(-3.4e38), 5), nodata=None)),
    "NaN that is not declared": Broken("values: S1GRD not finite", "note", r"1 of 12 files hold NaN .*\d pixels",
                                       one(S1, lambda v: scattered(v, np.nan, 5), nodata=None)),
    "decibels x 100": Broken("values: S1GRD units", "error", r"decibels x 100.*constant_scale: \{S1GRD: 0.01\}",
                             every(S1, lambda v: np.round(v * 100).astype(np.int16), nodata=None)),
    "decibels x 100, wrong scale": Broken("values: S1GRD units", "error",
                                          r"Change constant_scale from 0.1 to \{S1GRD: 0.01\}",
                                          every(S1, lambda v: np.round(v * 100).astype(np.int16), nodata=None),
                                          {"data.constant_scale": {S1: 0.1}}),
    "a scale too many": Broken("values: S2L1C units", "error", "Remove constant_scale .0.0001",
                               changes={"data.constant_scale": {S2: 0.0001}}),
    "a scale too small": Broken("values: S2L1C units", "error",
                                r"Change constant_scale from 1000 to \{S2L1C: 10000\}",
                                every(S2, lambda v: (v / 10000).astype(np.float32)),
                                {"data.constant_scale": {S2: 1000}}),
    "a scale that flattens": Broken("values: S1GRD units", "error", "Remove constant_scale .0.01",
                                    changes={"data.constant_scale": {S1: 0.01}}),
    "statistics of RTC": Broken("values: S1GRD statistics", "error", "those of S1RTC",
                                changes={"data.means": {S1: [-10.93, -17.329]}, "data.stds": {S1: [4.391, 4.459]}}),
    "statistics of TerraMind 0.1": Broken(
        "values: DEM statistics", "warning", "those of TerraMind 0.1",
        changes={"with": "DEM", "data.means": {"DEM": [435.726]}, "data.stds": {"DEM": [560.326]}}),
    "statistics of TerraMesh": Broken(
        "values: RGB statistics", "warning", "those of the TerraMesh data set",
        changes={"with": "RGB", "data.means": {"RGB": [110.349, 99.507, 75.843]},
                 "data.stds": {"RGB": [69.905, 53.708, 53.378]}}),
    "statistics of 0 to 1": Broken("values: S1GRD statistics", "warning", "standard deviations from the configured",
                                   changes={"data.means": {S1: [0.5, 0.5]}, "data.stds": {S1: [0.2, 0.2]}}),
    "no statistics, TerraTorch's": Broken(
        "values: S1GRD statistics", "error", "no means and stds: the values are not standardised",
        changes="terratorch without S1GRD"),
}  # fmt: skip

LABELS: dict[str, Broken] = {
    "id 9": Broken("labels: ids", "error", r"_LabelHand.tif 9 \(64 pixels\).*num_classes",
                   one(LABEL, lambda v: scattered(v, 9, 64))),
    "id 255": Broken("labels: ids", "error", r"255 \(64 pixels\)",
                     one(LABEL, lambda v: scattered(np.maximum(v, 0).astype(np.uint8), 255, 64))),
    "ignore_index of another": Broken("labels: ids", "error", "neither 0 to 1 nor ignore_index 255: .* -1",
                                      every(LABEL, lambda v: upper(v, -1)), {"model.ignore_index": 255}),
    "ids from 1": Broken("labels: ids", "error", r" 2 \(\d+ pixels\).*reduce_zero_label",
                         every(LABEL, lambda v: v + 1)),
    "nodata is a class": Broken("labels: nodata", "warning", "nodata is 0, which is also a class id.*unsetnodata",
                                every(LABEL, nodata=0)),
    "nodata is a class, TerraTorch's": Broken("labels: nodata", "error", "turns the class into no label",
                                              every(LABEL, nodata=0), "terratorch"),
    "one without label": Broken("labels: empty", "warning", "1 of 12", one(LABEL, lambda v: np.full_like(v, -1))),
    "all without label": Broken("labels: empty", "error", "12 of 12", every(LABEL, lambda v: np.full_like(v, -1))),
    "a class never occurs": Broken("labels: train classes", "warning", r"class 1 \(Water\)",
                                   every(LABEL, lambda v: np.minimum(v, 0))),
    "a class too many": Broken("labels: val classes", "warning", "class 2",
                               changes={"data.num_classes": 3, "data.class_names": ["Land", "Water", "Ice"]}),
    "a rare class": Broken("labels: balance", "note", r"0\.\d+% class 1 .*dice",
                           every(LABEL, lambda v: scattered(np.zeros_like(v), 1, 1000))),
    "labels as pictures": Broken("labels: ids", "error", "255", every(LABEL, lambda v: np.uint8(255) * (v == 1))),
    "three bands": Broken("labels: readable", "error", "12 files, e.g. .* has 3 bands, expected .*gdal_translate -b 1",
                          every(LABEL, lambda v: np.repeat(v, 3, axis=0))),
    "complex labels": Broken("labels: readable", "error", "holds complex numbers",
                             one(LABEL, lambda v: v.astype(np.complex64))),
    "unreadable": Broken("labels: readable", "error", "1 file, e.g. ", raw(LABEL, lambda b: b[:300])),
}  # fmt: skip
BATTERY = {**FILES, **VALUES, **LABELS}


def _coarser(path: Path) -> Any:
    import rasterio

    with rasterio.open(path) as raster:
        return raster.transform @ rasterio.Affine.scale(2)


def changes_of(broken: Broken, dataset: Any) -> dict[str, Any]:
    """Return the changes of a row, with its words for longer ones spelt out."""
    if broken.changes == "terratorch":
        return terratorch()
    if broken.changes == "terratorch without S1GRD":
        changes = terratorch()
        for key in ("data.means", "data.stds"):
            del changes[key][S1]
        return changes
    changes = dict(broken.changes)
    name = changes.pop("with", None)
    if name is not None:
        names = [S2, S1, name]
        endings = {S2: "S2Hand", S1: "S1Hand", name: f"{name}Hand"}
        changes |= {
            "data.modalities": names,
            "data.data_root": {key: str(dataset.root / "data" / f"{key}Hand") for key in names},
            "data.image_grep": {key: f"*_{ending}.tif" for key, ending in endings.items()},
        }
    return changes


@pytest.mark.parametrize("mistake", every_fifth(BATTERY))
def test_a_mistake_is_named(mistake: str, chips: Any) -> None:
    broken = BATTERY[mistake]
    broken.spoil(chips)
    found = look(chips, changes_of(broken, chips))
    named = [f for f in found if re.fullmatch(broken.check, f.check) and re.search(broken.text, str(f))]
    assert named, [str(finding) for finding in found]
    assert all(re.fullmatch(broken.verdict, finding.verdict) for finding in named)


@pytest.mark.parametrize("size", [32, *(pytest.param(size, marks=pytest.mark.slow) for size in (96, 256))])
def test_sound_chips_of_any_size_raise_no_alarm(size: int, tmp_path: Path) -> None:
    dataset = simulate(tmp_path, size=size, chips=12, seed=size)
    endings = {S2: "S2Hand", S1: "S1Hand"}
    names = [S2, S1, "S2L2A", "RGB", "S1RTC", "DEM", "LULC", "NDVI"]
    changes = {
        "data.modalities": names,
        "data.data_root": {name: str(dataset.root / "data" / f"{name}Hand") for name in names},
        "data.image_grep": {name: f"*_{endings.get(name, f'{name}Hand')}.tif" for name in names},
    }
    assert [str(finding) for finding in look(dataset, changes) if finding.verdict != "note"] == []


@pytest.mark.parametrize(("columns", "warned"), [(64, False), (63.5, False), (60, True), (0, True)])
def test_neighbours_are_not_the_same_ground(columns: float, warned: bool, chips: Any) -> None:
    # Far from the middle of a UTM zone, north is not up: boxes in degrees around neighbours overlap.
    for split, shift in (("train", 0.0), ("valid", columns)):
        for kind, ending in ((S2, "S2"), (S1, "S1"), (LABEL, "Label")):
            path = chips.root / "data" / f"{kind}Hand" / f"{chips.splits[split][0]}_{ending}Hand.tif"
            rewrite(path, crs="EPSG:32633", transform=from_origin(300000 + 10 * shift, 5000000, 10, 10))
    assert ("files: overlap in space" in [finding.check for finding in look(chips)]) is warned
