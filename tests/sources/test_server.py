"""The server of the tests itself: ranges, counts and faults, seen through GDAL as scenes are read."""

import urllib.error
import urllib.request

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from terramind_plugin.sources import engine
from tests.sources.server import serve

SIDE = 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    values = np.random.default_rng(0).integers(0, 4000, (1, SIDE, SIDE), np.uint16)
    profile = {"driver": "COG", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint16", "compress": "deflate"}
    profile |= {"crs": "EPSG:32633", "transform": Affine(10, 0, 300000, 0, -10, 5300040)}
    with rasterio.open(root / "a.tif", "w", **profile) as file:
        file.write(values)
    return root, values


@pytest.fixture
def server(folder):
    with serve(folder[0]) as running:
        yield running


def read(url, window=None, **options):
    with rasterio.Env(**(engine.GDAL | {"GDAL_HTTP_RETRY_DELAY": 0.01} | options)), rasterio.open(url) as file:
        return file.read(window=window)


def test_ranges_are_served_and_counted(server, folder):
    root, values = folder
    window = Window(0, 0, 300, 300)
    assert np.array_equal(read(f"{server.url}/a.tif?one", window), values[:, :300, :300])
    requests, served = server.count()
    assert 1 <= requests <= 4
    assert served < (root / "a.tif").stat().st_size / 8
    assert {one.status for one in server.requests} <= {200, 206}  # 200: the answer to HEAD


@pytest.mark.parametrize("status", [429, 500, 503])
def test_gdal_tries_again_what_may_pass(server, folder, status):
    server.fail("a.tif", status, times=2)
    url = f"{server.url}/a.tif?status{status}"
    assert np.array_equal(read(url, Window(0, 0, 8, 8)), folder[1][:, :8, :8])
    assert [one.status for one in server.requests][:2] == [status, status]


@pytest.mark.parametrize("status", [403, 404])
def test_what_does_not_pass_is_an_error(server, status):
    server.fail("a.tif", status)
    with pytest.raises(rasterio.RasterioIOError):
        read(f"{server.url}/a.tif?refused{status}")


def test_truncated_answers_and_timeouts_are_errors(server):
    server.fail("a.tif", "truncate")
    with pytest.raises(rasterio.RasterioIOError):
        read(f"{server.url}/a.tif?truncated", Window(1500, 1500, 300, 300), GDAL_HTTP_MAX_RETRY=0)
    server.reset()
    server.fail("a.tif", "timeout", hold=20)
    with pytest.raises(rasterio.RasterioIOError):
        read(f"{server.url}/a.tif?late", GDAL_HTTP_TIMEOUT=1, GDAL_HTTP_MAX_RETRY=0)


def test_signatures_expire(folder):
    with serve(folder[0], signed=True) as server:
        with urllib.request.urlopen(server.sign(f"{server.url}/a.tif", 60)) as answer:
            assert answer.status == 200
        for url in (f"{server.url}/a.tif", server.sign(f"{server.url}/a.tif", -1)):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(url)


def test_nothing_outside_the_folder_is_served(server, tmp_path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.url}/..%2F..%2Fetc%2Fpasswd")
