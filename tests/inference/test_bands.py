"""`terramind generate` from some of a modality's bands, with the tokenizers that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terramind_plugin.cli import main
from tests.inference.conftest import read_raster, write_modality


def test_six_bands_by_their_names_or_by_their_order(tmp_path: Path, capsys: Any) -> None:
    """A file with six of the bands gives what these bands give of a file with all, which names them."""
    chosen = ["B02", "B03", "B04", "B8A", "B11", "B12"]
    scene = write_modality(tmp_path / "scene.tif", "S2L2A", (64, 64))
    few = tmp_path / "few" / "scene.tif"
    few.parent.mkdir()
    with rasterio.open(scene) as file:
        profile, image = file.profile, file.read([file.descriptions.index(band) + 1 for band in chosen])
    with rasterio.open(few, "w", **{**profile, "count": 6}) as file:
        file.write(image)
    model = ["--model", "terramind_sim_nano", "--steps", "1", "--accelerator", "cpu", "--to", "LULC"]
    for source, out in ((scene, "named"), (few, "ordered")):
        words = ["generate", source, "--modality", "S2L2A", "--out", tmp_path / out, *model]
        assert main([str(word) for word in [*words, "--bands", "BLUE,GREEN,RED,NIR_NARROW,SWIR_1,SWIR_2"]]) == 0
    assert np.array_equal(
        read_raster(tmp_path / "named" / "scene_LULC.tif"), read_raster(tmp_path / "ordered" / "scene_LULC.tif")
    )
    with rasterio.open(tmp_path / "named" / "scene_LULC.tif") as file:
        assert file.tags()["bands"] == "BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2"
    assert main([str(word) for word in ["generate", few, "--modality", "S2L2A", "--out", tmp_path / "no", *model]]) == 2
    assert "scene.tif has 6 bands, but S2L2A has 12" in capsys.readouterr().err
    words = ["generate", few, "--modality", "S2L2A", "--out", tmp_path / "no", *model, "--bands", "BLUE,GREN"]
    assert main([str(word) for word in words]) == 2
    assert "Did you mean 'GREEN'" in capsys.readouterr().err
