"""Names of rasters that only GDAL knows."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terramind_plugin.cli import main
from terramind_plugin.evaluate.few_shot import list_patches
from terramind_plugin.model.modalities import resolve
from terramind_plugin.raster.chips import read_chip
from terramind_plugin.raster.paths import is_remote, raster_path
from tests.inference.conftest import write_modality

NANO = ("--model", "terramind_sim_nano", "--steps", "1")
SERVER = """
import io, re
from http.server import HTTPServer, SimpleHTTPRequestHandler

class Ranges(SimpleHTTPRequestHandler):
    def do_GET(self):
        first, last = map(int, re.match(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", "bytes=0-99999999")).groups())
        try:
            content = open(self.translate_path(self.path), "rb").read()
        except OSError:
            return self.send_error(404)
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

server = HTTPServer(("127.0.0.1", 0), Ranges)
print(server.server_port, flush=True)
server.serve_forever()
"""
WINDOWS = ("--crop", "64", "--stride", "48", "--margin", "4", "--accelerator", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a chip, a scene, and both in an archive."""
    folder = tmp_path_factory.mktemp("rasters")
    chip, scene = (
        write_modality(folder / f"{name}.tif", "S2L2A", size)
        for name, size in (("chip", (48, 48)), ("scene", (90, 70)))
    )
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for path in (chip, scene):
            archive.write(path, path.name)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Return the URL of the folder; the server is another process, since GDAL keeps Python waiting while it reads."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GDAL_HTTP_TIMEOUT", "20")
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                patch.delenv(name, raising=False)
            yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.fixture(params=["http", "vsicurl", "query", "vsizip", "zip"])
def remote(request: pytest.FixtureRequest, folder: Path, address: str) -> str:
    """Return the name of a raster, with {} for its stem."""
    return {
        "http": f"{address}/{{}}.tif",
        "vsicurl": f"/vsicurl/{address}/{{}}.tif",
        "query": f"{address}/{{}}.tif?token=a/b.c",
        "vsizip": f"/vsizip/{folder}/archive.zip/{{}}.tif",
        "zip": f"zip://{folder}/archive.zip!{{}}.tif",
    }[request.param]


def test_chips_and_names(remote: str, folder: Path) -> None:
    chip = read_chip(raster_path(remote.format("chip")), resolve("S2L2A"))
    np.testing.assert_array_equal(chip.values, read_chip(folder / "chip.tif", resolve("S2L2A")).values)
    assert str(chip.path) == remote.format("chip")
    assert (chip.path.name, chip.path.stem, chip.path.suffix) == ("chip.tif", "chip", ".tif")
    for twin in (copy.deepcopy(chip.path), pickle.loads(pickle.dumps(chip.path)), raster_path(chip.path)):
        assert (twin, hash(twin), str(twin)) == (chip.path, hash(chip.path), str(chip.path))
    assert chip.path.resolve() == chip.path


@pytest.mark.parametrize("remote", ["http", "vsizip"], indirect=True)
def test_generate(remote: str, folder: Path, tmp_path: Path) -> None:
    """A scene goes another way than a chip, so its name is tried there."""
    words = ["--modality", "S2L2A", "--to", "LULC", "--pretrained", "true", *NANO, *WINDOWS]
    out, expected = tmp_path / "out", folder / "expected"
    if not expected.exists():
        assert main(["generate", str(folder / "scene.tif"), *words, "--out", str(expected)]) == 0
    assert main(["generate", remote.format("scene"), *words, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["scene_LULC.tif", "scene_generated.png"]
    with rasterio.open(out / "scene_LULC.tif") as file, rasterio.open(expected / "scene_LULC.tif") as known:
        np.testing.assert_array_equal(file.read(), known.read())


def test_other_commands(folder: Path, address: str, tmp_path: Path) -> None:
    remote = f"{address}/chip.tif"
    assert main(["reconstruct", remote, "--modality", "S2L2A", *NANO, "--out", str(tmp_path)]) == 0
    model = ("--modality", "S2L2A", "--model", "terramind_sim_nano", "--pretrained", "false", "--out", str(tmp_path))
    assert main(["localise", remote, f"/vsizip/{folder}/archive.zip/scene.tif", *model]) == 0
    names = {"chip_S2L2A_reconstructed.tif", "chip_places.tif", "chip_places.png", "scene_places.tif", "places.csv"}
    assert names <= {path.name for path in tmp_path.iterdir()}


def test_patches_of_a_table(folder: Path, address: str) -> None:
    table = folder / "patches.csv"
    table.write_text(f"path,label\n{address}/chip.tif,near\nchip.tif,near\n")
    assert [str(patch.path) for patch in list_patches(table)] == [f"{address}/chip.tif", str(folder / "chip.tif")]


def test_local_names_stay_paths(tmp_path: Path) -> None:
    assert raster_path(str(tmp_path / "a.tif")) == tmp_path / "a.tif"
    assert not is_remote("a//b.tif")
    assert type(raster_path("a.tif")) is type(tmp_path)


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/none.tif", "/vsizip//none.zip/none.tif"])
def test_what_is_not_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", name, "--modality", "S2L2A", "--to", "LULC", *NANO, "--out", str(tmp_path)]) == 2
    assert f"terramind: {name} cannot be read as a raster" in capsys.readouterr().err
