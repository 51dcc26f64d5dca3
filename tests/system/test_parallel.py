"""Work in threads, and processes that are forked after it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from terramind_plugin.system.parallel import map_chunks

CODES = (32630, 32631, 32632, 32633, 4326, 3857, 25832, 3035)
"""EPSG codes: PROJ asks its database for each."""
PATIENCE = 10
"""Seconds that a child may take; it needs a hundredth of one."""


def read_codes(paths: Sequence[Path]) -> list[int | None]:
    """Return the EPSG code of each raster."""
    codes = []
    for path in paths:
        with rasterio.open(path) as raster:
            codes.append(raster.crs.to_epsg())
    return codes


def _ends(child: int) -> bool:
    """Return whether a child ends with status 0, and kill it if it does not end."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_after_reading_reads(tmp_path: Path) -> None:
    """As workers of a data loader do. Threads that had just ended left a lock behind in one fork of five."""
    paths = []
    for code in CODES:
        paths.append(tmp_path / f"{code}.tif")
        profile = {"count": 1, "height": 8, "width": 8, "dtype": "uint8", "crs": f"EPSG:{code}"}
        with rasterio.open(paths[-1], "w", driver="GTiff", transform=from_origin(1, 1, 1, 1), **profile) as raster:
            raster.write(np.zeros((1, 8, 8), np.uint8))
    for _ in range(40):
        assert map_chunks(read_codes, paths * 2) == list(CODES) * 2
        child = os.fork()
        if not child:
            read_codes(paths[::-1])
            os._exit(0)
        assert _ends(child)
