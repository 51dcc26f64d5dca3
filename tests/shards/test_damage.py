"""Damaged shards: one line each that names shard and key, or counted where asked."""

import io
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from terramind_plugin import TerraMeshDataset
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.shards.writer import write_group, write_sample, write_shard
from terramind_plugin.shards.zarr_zip import ZarrGroup
from tests.shards.packing import LAYOUT, bands_of, key_of, member, values_of

FOUR = ["S2L2A", "S1RTC", "S1GRD", "DEM"]
FIRST = "majortom_shard_000001"
KEYS = [key_of(FIRST, "val", number) for number in range(5)]
S2 = f"val/S2L2A/{FIRST}.tar"


@pytest.fixture
def copy(mesh, tmp_path):
    root = tmp_path / "mesh"
    shutil.copytree(mesh, root)
    return root


def offset_of(path, number):
    with tarfile.open(path) as tar:
        found = tar.getmembers()[number]
    return found.offset_data, found.size


def repack(path, change):
    """Write a tar anew from a changed list of (name, content)."""
    with tarfile.open(path) as tar:
        members = [(one.name, tar.extractfile(one).read()) for one in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in change(members):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def cut_in_a_member(root):
    path = root / S2
    start, size = offset_of(path, 3)
    path.write_bytes(path.read_bytes()[: start + size // 2])
    return rf"{S2}: it ends after \d+ bytes, inside {KEYS[3]}.zarr.zip, after key {KEYS[2]}", 2


def cut_between_members(root):
    path = root / S2
    start, _ = offset_of(path, 3)
    path.write_bytes(path.read_bytes()[: start - 512])
    return rf"{S2}: it ends after \d+ bytes without the empty block.*after key {KEYS[2]}", 2


def cut_in_a_header(root):
    path = root / S2
    start, _ = offset_of(path, 3)
    path.write_bytes(path.read_bytes()[: start - 100])
    return rf"{S2}: it ends after .*after key {KEYS[2]}", 2


def empty(root):
    (root / S2).write_bytes(b"")
    return rf"{S2}: it is empty \(0 bytes\)", 5


def empty_smallest(root):
    (root / f"val/DEM/{FIRST}.tar").write_bytes(b"")
    return rf"val/DEM/{FIRST}.tar: it is empty \(0 bytes\)", 5


def damaged_header(root):
    path = root / S2
    content = bytearray(path.read_bytes())
    start, _ = offset_of(path, 3)
    content[start - 512 : start - 400] = b"x" * 112
    path.write_bytes(content)
    return rf"{S2}: .*damaged.*after key {KEYS[2]}", 2


def no_tar(root):
    (root / S2).write_bytes(b"<html>not found</html>" * 100)
    return rf"{S2}: it is not a readable tar file", 5


def other_order(root):
    repack(root / S2, lambda members: [members[0], members[2], members[1], *members[3:]])
    return rf"{S2}: sample 2 is {KEYS[2]}, but {KEYS[1]} in .*the same keys in the same order", 2


def one_less(root):
    repack(root / S2, lambda members: members[:-1])
    return rf"{S2}: sample 5 is nothing, but {KEYS[4]} in", 1


def truncated_member(root):
    repack(root / S2, lambda members: [members[0], (members[1][0], members[1][1][:-200]), *members[2:]])
    return rf"{S2}: {KEYS[1]} is not a readable Zarr group", 1


def empty_member(root):
    repack(root / S2, lambda members: [members[0], (members[1][0], b""), *members[2:]])
    return rf"{S2}: {KEYS[1]} is not a readable Zarr group", 1


def flipped_bits(root):
    path = root / S2
    content = bytearray(path.read_bytes())
    start, size = offset_of(path, 1)
    for place in range(start + size // 2, start + size // 2 + 64):
        content[place] ^= 255
    path.write_bytes(content)
    return rf"{S2}: {KEYS[1]} is not a readable Zarr group.*CRC", 1


def replaced(content):
    def change(root):
        repack(root / S2, lambda members: [members[0], (members[1][0], content), *members[2:]])

    return change


PLACE = {"left": 0, "top": 0, "epsg": 32632, "centre": (9, 45), "sample": "1"}


def with_values(values, text, bands=None):
    def change(root):
        replaced(write_sample(values, bands or bands_of("S2L2A"), **PLACE))(root)
        return rf"{S2}: {KEYS[1]}.*{text}", 1

    return change


def other_size(root):
    replaced(member(1, "S2L2A", values_of(1, "S2L2A", side=20)))(root)
    return rf"{KEYS[1]} has 24 x 24 pixels, but S2L2A has 20 x 20", 1


def wrong_length(root):
    good = zipfile.ZipFile(io.BytesIO(member(1, "S2L2A")))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in good.namelist():
            file.writestr(name, good.read(name).replace(b"24,", b"48,") if name == ".zmetadata" else good.read(name))
    replaced(stream.getvalue())(root)
    return rf"{S2}: {KEYS[1]} .*its header says", 1


def no_pixels(root):
    replaced(write_group({"other": (["x"], np.arange(3))}))(root)
    return rf"{S2}: {KEYS[1]} has no array 'bands'. It has: other", 1


DAMAGES = {
    damage.__name__: damage
    for damage in (
        cut_in_a_member, cut_between_members, cut_in_a_header, empty, empty_smallest, damaged_header, no_tar,
        other_order, one_less, truncated_member, empty_member, flipped_bits, other_size, wrong_length, no_pixels,
    )
} | {
    "decimals": with_values(values_of(1, "S2L2A").astype("f4"), "holds float32, expected whole numbers for S2L2A"),
    "text": with_values(np.full((12, 24, 24), "a"), "holds <U1, expected real numbers"),
    "complex": with_values(np.zeros((12, 24, 24), "c8"), "holds complex64, expected real numbers"),
    "other_bands": with_values(values_of(1, "S2L1C"), "has the bands X1, .*B10.*S2L2A has B01",
                               ["X1", *bands_of("S2L1C")[1:]]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_or_counted(damage, copy):
    message, lost = damage(copy)
    with pytest.raises(DataError, match=message) as caught:
        list(TerraMeshDataset(copy, "val", FOUR))
    assert "\n" not in str(caught.value)
    data = TerraMeshDataset(copy, "val", FOUR, on_error="skip")
    found = [sample["key"] for sample in data]
    assert len(found) == len(set(found)) == sum(LAYOUT.values()) - lost
    assert sum(data.skipped.values()) == lost


def test_skipped_samples_of_workers_are_counted(copy):
    from torch.utils.data import DataLoader

    truncated_member(copy)
    data = TerraMeshDataset(copy, "val", FOUR, on_error="skip")
    assert len(list(DataLoader(data, batch_size=None, num_workers=2))) == 11
    assert data.skipped == {"damaged": 1}


def test_a_missing_folder(copy):
    shutil.rmtree(copy / "val/S1GRD")
    with pytest.raises(DataError, match=r"has no folder of S1GRD. It has: DEM, .*remove it from modalities"):
        TerraMeshDataset(copy, "val", FOUR)
    data = TerraMeshDataset(copy, "val", FOUR, on_error="skip")
    assert not any(bool(sample["modality_mask"]["S1GRD"]) for sample in data)


def test_a_missing_shard(copy):
    (copy / S2).unlink()
    with pytest.raises(DataError, match=rf"{S2} is missing; other modalities have it"):
        TerraMeshDataset(copy, "val", FOUR)
    data = TerraMeshDataset(copy, "val", FOUR, on_error="skip")
    found = list(data)
    assert [bool(sample["modality_mask"]["S2L2A"]) for sample in found] == [False] * 5 + [True] * 7
    assert data.skipped == {"S2L2A: shard missing": 1}


def test_an_image_of_nan_is_missing(tmp_path):
    with write_shard(tmp_path, "val", FIRST, ["S1RTC", "DEM"]) as writer:
        empty = np.full((2, 24, 24), np.nan, "f2")
        writer.add("a", {"S1RTC": member(0, "S1RTC", empty), "DEM": member(0, "DEM")})
    sample = next(iter(TerraMeshDataset(tmp_path, "val", ["S1RTC", "DEM"])))
    assert not sample["modality_mask"]["S1RTC"]
    assert sample["modality_mask"]["DEM"]


def test_long_names_and_folders_in_a_tar(tmp_path):
    """Tars of other tools: extended headers, folders, further members."""
    path = tmp_path / "val/DEM" / f"{FIRST}.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (("a/readme.txt", b"x"), (f"a/{'k' * 120}.zarr.zip", member(0, "DEM"))):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            header.pax_headers = {"mtime": "1.5"}
            tar.addfile(header, io.BytesIO(content))
    assert [sample["key"] for sample in TerraMeshDataset(tmp_path, "val", ["DEM"])] == ["k" * 120]


def test_chunks_fill_values_and_order():
    """Groups of other writers: several chunks, chunks that are not stored, Fortran order, zlib, no consolidation."""
    zarr = pytest.importorskip("zarr")
    import numcodecs

    values = np.arange(30, dtype="f4").reshape(5, 6)
    stream = io.BytesIO()
    store = zarr.storage.MemoryStore()
    group = zarr.group(store, zarr_format=2)
    for name, codec, order in (("a", numcodecs.Zlib(1), "C"), ("b", None, "F"), ("c", numcodecs.Zstd(3), "C")):
        made = group.create_array(
            name, shape=(5, 6), chunks=(2, 4), dtype="f4", compressors=codec, order=order, fill_value=np.nan
        )
        made[...] = values
    group.create_array("empty", shape=(5, 6), chunks=(2, 4), dtype="f4", fill_value=np.nan)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in store._store_dict.items():
            file.writestr(name, content.to_bytes())
    read = ZarrGroup(stream.getvalue(), "group")
    for name in "abc":
        np.testing.assert_array_equal(read.read(name), values)
    assert np.isnan(read.read("empty")).all()
    assert read.read("empty").shape == (5, 6)


def test_version_3_is_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("zarr.json", "{}")
    with pytest.raises(DataError, match=re.escape("version 3 of the Zarr format, expected version 2")):
        ZarrGroup(stream.getvalue(), "x.zarr.zip")


def test_nothing_stays_when_writing_fails(tmp_path):
    def fail():
        with write_shard(tmp_path, "val", FIRST, ["DEM"]) as writer:
            writer.add("a", {"DEM": member(0, "DEM")})
            writer.add("b", {})

    with pytest.raises(ConfigError, match="one member for each of DEM"):
        fail()
    assert not list((tmp_path / "val/DEM").iterdir())
