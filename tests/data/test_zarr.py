"""Zarr.zip chips of ImpactMesh's layout beside GeoTIFFs: series, labels with -1, predictions with a georeference."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from terramind_plugin import TerraMindDataModule
from terramind_plugin.data.writer import find_data
from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.samples.checks.run import check_data
from terramind_plugin.samples.plan import describe_data
from terramind_plugin.shards.chips import read_zarr_chip
from terramind_plugin.shards.writer import write_group, write_sample
from tests.data.conftest import write_raster

DATES, SIDE = 4, 32
PLACE = {"left": 500000.0, "top": 4600000.0, "epsg": 32630, "centre": (-3.0, 41.5)}
IDS = ["EMSR1_a", "EMSR1_b", "EMSR2_c"]
GREP = {"S2L2A": "*_S2L2A.zarr.zip", "S1RTC": "*_S1RTC.zarr.zip", "DEM": "*_DEM.tif"}


def pixels(number: int, name: str) -> np.ndarray:
    """Return values [dates, bands, H, W]."""
    random = np.random.default_rng([number, len(name)])
    if name == "S2L2A":
        return random.integers(20, 4000, (DATES, 12, SIDE, SIDE)).astype("i2")
    return random.normal(-12, 3, (DATES, 2, SIDE, SIDE)).astype("f4")


@pytest.fixture(scope="module")
def flood(tmp_path_factory):
    """Return the root of three chips of four dates, with labels of three classes and -1."""
    root = tmp_path_factory.mktemp("flood")
    for number, name in enumerate(IDS):
        for kind in ("S2L2A", "S1RTC"):
            values = pixels(number, kind)
            values[1, :, :3, :3] = -9999
            bands = MODALITIES[kind].band_names if kind == "S2L2A" else ["vv", "vh"]
            path = root / kind / f"{name}_{kind}.zarr.zip"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(write_sample(values, bands, sample=name, times=range(DATES), **PLACE))
        random = np.random.default_rng(number)
        write_raster(root / "DEM" / f"{name}_DEM.tif", random.integers(0, 900, (1, SIDE, SIDE)).astype("i2"))
        label = random.integers(-1, 3, (1, SIDE, SIDE)).astype("i2")
        write_raster(root / "MASK" / f"{name}_annotation_flood.tif", label)
    (root / "split.txt").write_text("\n".join(IDS))
    return root


def module(root, **changes):
    roots = {name: str(root / name) for name in changes.get("modalities", ["S2L2A", "S1RTC", "DEM"])}
    given = {
        "task": "segmentation", "batch_size": 2, "num_classes": 3, "modalities": list(roots), "image_grep": GREP,
        "train_data_root": roots, "val_data_root": roots, "test_data_root": roots, "predict_data_root": roots,
        "label_grep": "*_annotation_flood.tif", "expand_temporal_dimension": True, "check_values": False,
    }  # fmt: skip
    given |= {f"{split}_label_data_root": str(root / "MASK") for split in ("train", "val", "test")}
    given |= {f"{split}_split": str(root / "split.txt") for split in ("train", "val", "test")}
    return TerraMindDataModule(**{**given, **changes})


def test_series_beside_a_geotiff(flood):
    data = module(flood)
    data.setup("fit")
    sample = data.val_dataset[0]
    assert {name: tuple(image.shape) for name, image in sample["image"].items()} == {
        "S2L2A": (12, DATES, SIDE, SIDE), "S1RTC": (2, DATES, SIDE, SIDE), "DEM": (1, DATES, SIDE, SIDE),
    }  # fmt: skip
    wanted = pixels(0, "S2L2A").astype("f4").transpose(1, 0, 2, 3)
    wanted[:, 1, :3, :3] = np.array(MODALITIES["S2L2A"].mean)[:, None, None]  # -9999 is no data
    np.testing.assert_allclose(sample["image"]["S2L2A"].numpy(), wanted, rtol=1e-6)
    assert set(sample["mask"].unique().tolist()) == {-1, 0, 1, 2}
    (batch, *_) = data.train_dataloader()
    assert batch["image"]["S1RTC"].isfinite().all()


def test_one_date_alone(flood, tmp_path):
    for number, name in enumerate(IDS):
        content = write_sample(
            pixels(number, "S2L2A")[:1, ::-1], MODALITIES["S2L2A"].band_names[::-1], sample=name, **PLACE
        )
        (tmp_path / "S2L2A").mkdir(exist_ok=True)
        (tmp_path / "S2L2A" / f"{name}_S2L2A.zarr.zip").write_bytes(content)
    roots = {"S2L2A": str(tmp_path / "S2L2A")}
    data = module(flood, modalities=["S2L2A"], expand_temporal_dimension=False, image_grep={"S2L2A": GREP["S2L2A"]},
                  **{f"{split}_data_root": roots for split in ("train", "val", "test", "predict")})  # fmt: skip
    data.setup("fit")
    found = data.val_dataset[0]["image"]
    found = found["S2L2A"] if isinstance(found, dict) else found
    np.testing.assert_array_equal(found.numpy(), pixels(0, "S2L2A")[0])  # bands by their names


def test_check_reads_them(flood, tmp_path):
    none = {f"{split}_{key}": None for split in ("val", "test") for key in ("split", "data_root", "label_data_root")}
    plan = describe_data(module(flood, **none))
    found = list(check_data(plan, samples=4, ignored=-1))
    assert not [str(finding) for finding in found if finding.verdict == "error"]
    assert any("pixels of 3 of 3 samples read" in str(finding) for finding in found)
    (flood / "S2L2A" / "EMSR1_a_S2L2A.zarr.zip").rename(tmp_path / "kept")
    try:
        (flood / "S2L2A" / "EMSR1_a_S2L2A.zarr.zip").write_bytes(b"no zip file")
        found = [str(finding) for finding in check_data(plan, samples=4, ignored=-1) if finding.verdict == "error"]
        assert any("EMSR1_a_S2L2A.zarr.zip" in text and "not a readable Zarr group" in text for text in found)
        data = module(flood)
        data.setup("fit")
        with pytest.raises(DataError, match=r"EMSR1_a_S2L2A.zarr.zip is not a readable Zarr group"):
            data.val_dataset[0]
    finally:
        (tmp_path / "kept").rename(flood / "S2L2A" / "EMSR1_a_S2L2A.zarr.zip")


def test_georeference_and_gaps(flood):
    path = flood / "S1RTC" / "EMSR1_b_S1RTC.zarr.zip"
    with rasterio.open(raster_name(path)) as raster:
        assert raster.crs.to_epsg() == 32630
        assert raster.transform == from_origin(500000, 4600000, 10, 10)
        assert raster.descriptions[:3] == ("vv", "vh", "vv")
        assert np.isnan(raster.nodata)
    valid, undeclared = find_data([str(path)], (SIDE, SIDE))
    assert valid.all()  # other dates have data there
    assert undeclared == {}
    source = Source(path, Expected("S1RTC", ("VV", "VH"), (-11.0, -17.0), dated=True))
    assert source.read(0, 0, SIDE, SIDE).values.shape == (DATES * 2, SIDE, SIDE)
    source.close()


@pytest.mark.parametrize(
    ("dtype", "attributes", "values", "wanted", "nodata"),
    [
        ("u1", {}, [0, 255], [0, 255], None),
        ("i2", {}, [0, -9999], [0, -9999], -9999),
        ("i2", {"_FillValue": -1}, [0, -1], [0, -1], -1),
        ("f2", {}, [0.5, np.nan], [0.5, np.nan], np.nan),
        ("f4", {"missing_value": [7.0]}, [0.5, 7], [0.5, np.nan], np.nan),
        ("i2", {"scale_factor": 0.5, "add_offset": 1, "_FillValue": 4}, [2, 4], [2, np.nan], np.nan),
    ],
)
def test_numbers_that_mean_no_data(dtype, attributes, values, wanted, nodata, tmp_path):
    import io
    import json
    import zipfile

    array = np.array(values, dtype).repeat(2).reshape(1, 1, 2, 2)
    content = write_group({"bands": (("time", "band", "y", "x"), array)}, compressor=None)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == ".zmetadata":
                document = json.loads(text)
                document["metadata"]["bands/.zattrs"] |= attributes
                text = json.dumps(document).encode()
            new.writestr(name, text)
    path = tmp_path / "x.zarr.zip"
    path.write_bytes(stream.getvalue())
    chip = read_zarr_chip(path)
    np.testing.assert_array_equal(chip.values.ravel()[[0, 2]], np.array(wanted, chip.values.dtype))
    assert chip.nodata == nodata or (np.isnan(nodata) and np.isnan(chip.nodata))
    assert chip.crs is None
    assert chip.transform is None


def test_many_chips_in_memory_are_few(flood, tmp_path):
    from terramind_plugin.raster import zarr

    for number in range(zarr.KEPT + 3):
        path = tmp_path / f"{number}.zarr.zip"
        path.write_bytes((flood / "S1RTC" / "EMSR1_b_S1RTC.zarr.zip").read_bytes())
        with rasterio.open(raster_name(path)) as raster:
            assert torch.from_numpy(raster.read(1)).isfinite().any()
    assert zarr._raster_of.cache_info().currsize <= zarr.KEPT
