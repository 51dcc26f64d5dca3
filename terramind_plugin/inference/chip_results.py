"""Files of what a model made: GeoTIFFs on the grid of the input, positions as JSON, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError
from terramind_plugin.files import write_figure, write_text
from terramind_plugin.generation.generator import Places
from terramind_plugin.model.modalities import Modality
from terramind_plugin.raster.reader import Chip
from terramind_plugin.raster.writer import parse_color, write_geotiff
from terramind_plugin.system import refuse_inputs

NO_CLASS = 0
"""The land cover class for no data."""


def spread_of(modality: Modality, samples: Sequence[NDArray]) -> NDArray:
    """Return how far samples differ, per pixel: standard deviations [bands, H, W], or shares [1, H, W] for classes.

    The share is that of the samples whose class is not the most frequent one of the pixel.

    Args:
        modality: What the samples show.
        samples: Images [bands, H, W] or class ids [1, H, W].
    """
    stack = np.stack(samples)
    if modality.kind != "classes":
        return stack.std(axis=0, dtype=np.float64).astype(np.float32)
    votes = np.stack([(stack == number).sum(axis=0) for number in range(len(modality.class_names))])
    return (1 - votes.max(axis=0) / len(stack)).astype(np.float32)


class Results:
    """Writes into one folder, each file under its final name only when it is complete.

    Args:
        folder: Created if it does not exist.
        chips: The inputs; the first gives the grid and the beginning of the names.
        tags: What made the files.

    Raises:
        ConfigError: The folder is a file.
    """

    def __init__(self, folder: str | Path, chips: Sequence[Chip], tags: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"Cannot write into {self.folder}: it is a file. Give a folder.")
        self.grid = chips[0].grid
        self.stem = chips[0].path.stem
        self.inputs = [chip.path for chip in chips]
        self.valid = np.logical_or.reduce([chip.valid for chip in chips])
        self.tags = dict(tags)
        self.written: list[Path] = []

    def write_image(self, ending: str, modality: Modality, values: NDArray, **tags: str) -> None:
        """Write an image, with NaN or class 0 where no input had data.

        Args:
            ending: Of the name, after that of the chip.
            modality: What it shows.
            values: [bands, H, W] in the modality's units, or class ids [1, H, W].
            tags: Further tags.
        """
        if modality.kind != "classes":
            self._write(ending, self._masked(values), modality.band_names, modality.units, tags=tags)
            return
        names = ", ".join(f"{number} = {name}" for number, name in enumerate(modality.class_names))
        self._write(
            ending,
            np.where(self.valid, values, NO_CLASS).astype(np.uint8),
            modality.band_names,
            modality.units,
            nodata=NO_CLASS,
            colormap={number: parse_color(color) for number, color in enumerate(modality.class_colors)},
            tags={"class_names": names, **tags},
        )

    def write_spread(self, ending: str, modality: Modality, values: NDArray, samples: int) -> None:
        """Write how far samples differ; arguments as in `write_image`, values from `spread_of`."""
        classes = modality.kind == "classes"
        what = "disagreement" if classes else "std"
        meaning = "share of samples with another than the most frequent class" if classes else "standard deviation"
        self._write(
            ending,
            self._masked(values),
            [f"{name}_{what}" for name in modality.band_names],
            "1" if classes else modality.units,
            tags={"spread": f"{meaning}, of {samples} samples"},
        )

    def write_places(self, ending: str, places: Places, drawn: Sequence[tuple[float, float]]) -> None:
        """Write likely positions of the chip, and those that the samples were made with.

        Args:
            ending: Of the name, after that of the chip.
            places: Of one sample.
            drawn: Longitude and latitude for each sample, NaN where the model's text was no position.
        """
        pairs = zip(places.positions[0].tolist(), places.probabilities[0].tolist(), strict=True)
        content: dict[str, Any] = {
            "positions": [
                {"longitude": lon, "latitude": lat, "probability": float(f"{share:.6g}")} for (lon, lat), share in pairs
            ],
            "samples": [None if math.isnan(lon) else {"longitude": lon, "latitude": lat} for lon, lat in drawn],
            "grid": f"{places.step:g} degrees",
        }
        centre = self.grid.centre()
        if centre is not None:
            content["centre_of_input"] = {"longitude": round(centre[0], 5), "latitude": round(centre[1], 5)}
        text = json.dumps({**content, **self.tags}, indent=2, allow_nan=False) + "\n"
        path = self._target(f"{ending}.json")
        write_text(path, text)
        self.written.append(path)

    def write_picture(self, ending: str, figure: Figure) -> None:
        """Write a figure as PNG."""
        path = self._target(f"{ending}.png")
        write_figure(path, figure)
        self.written.append(path)

    def _masked(self, values: NDArray) -> NDArray:
        return np.where(self.valid, values, np.nan).astype(np.float32)

    def _write(
        self,
        ending: str,
        values: NDArray,
        descriptions: Sequence[str],
        units: str,
        *,
        nodata: float = math.nan,
        tags: Mapping[str, str],
        **more: Any,
    ) -> None:
        path = self._target(f"{ending}.tif")
        write_geotiff(
            path,
            values,
            crs=self.grid.crs,
            transform=self.grid.transform,
            descriptions=descriptions,
            units=[units] * len(values),
            nodata=nodata,
            tags={**self.tags, **tags},
            **more,
        )
        self.written.append(path)

    def _target(self, ending: str) -> Path:
        path = self.folder / f"{self.stem}_{ending}"
        refuse_inputs([path], self.inputs)
        self.folder.mkdir(parents=True, exist_ok=True)
        return path
