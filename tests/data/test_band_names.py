"""B04 and RED are one band, wherever a configuration names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio
import torch

from terramind_plugin.errors import ConfigError

CODES = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
NAMES = ["COASTAL_AEROSOL", "BLUE", "GREEN", "RED", "RED_EDGE_1", "RED_EDGE_2", "RED_EDGE_3", "NIR_BROAD",
         "NIR_NARROW", "WATER_VAPOR", "CIRRUS", "SWIR_1", "SWIR_2"]  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(CODES, ["RED", "BLUE"]), (NAMES, ["B04", "B02"]), (CODES, ["b4", "BLUE"]), (CODES, ["B04", "B02"])],
)
def test_one_band_by_two_names(
    stored: list[str], wanted: list[str], make_chips: Callable[..., Path], make_module: Callable[..., Any]
) -> None:
    root = make_chips()
    given = {"S2L1C": wanted}
    module = make_module(root, dataset_bands={"S2L1C": stored}, output_bands=given)
    module.setup("fit")
    sample = module.train_dataset[0]
    with rasterio.open(sample["filename"]["S2L1C"]) as raster:
        expected = torch.tensor(raster.read([4, 2]).astype("float32"))
    assert torch.equal(sample["image"]["S2L1C"], expected)
    assert given == {"S2L1C": wanted}


@pytest.mark.parametrize("stage", ["", "predict_"])
@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        (None, ["RED"], "names bands of S2L1C, but dataset_bands does not.*in their order, in dataset_bands"),
        (["B02", "B03"], ["B04"], "of S2L1C has B04, which is none of dataset_bands: B02, B03"),
    ],
)
def test_bands_that_files_do_not_name(
    stage: str,
    stored: list[str] | None,
    wanted: list[str],
    message: str,
    make_chips: Callable[..., Path],
    make_module: Callable[..., Any],
) -> None:
    bands = {f"{stage}output_bands": {"S2L1C": wanted}} | ({"dataset_bands": {"S2L1C": stored}} if stored else {})
    with pytest.raises(ConfigError, match=message):
        make_module(make_chips(), **bands)
