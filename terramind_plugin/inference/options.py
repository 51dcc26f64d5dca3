"""Options that several commands share. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.variants import Variant
from terramind_plugin.raster.paths import RemotePath

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Lightning's name for each precision, which is written to the tags of results."""
WINDOW_OVERLAP = 0.15
"""Default overlap of neighbouring windows, as a share of a window."""
MANY_BATCHES = 1000
"""Batches from which compiling a model is worth the wait: on an H200 compiling takes 20 to 45 s, and saves 70 ms of a
batch of 8 that is decoded in ten steps, and a few ms of one that is encoded."""


@dataclass(frozen=True)
class ModelArguments:
    """Model.

    Args:
        model: Registry name such as terramind_sim_nano, path of a checkpoint, or hub:ORG/NAME.
        pretrained: Load published or shipped weights; false for random ones, as a test.
        ckpt_path: Weights to load instead, for a model given by its registry name.
    """

    model: str = "terramind_v1_base"
    pretrained: bool = True
    ckpt_path: Path | None = None

    def look_up(self) -> tuple[Variant, Path | None]:
        """Return the architecture and the file of weights; the file is None for published or random weights.

        Raises:
            ConfigError: There is no such model.
            WeightsError: A file of weights is missing, or holds no known model.
        """
        from terramind_plugin.model.lookup import look_up_model

        return look_up_model(self.model, self.ckpt_path)


@dataclass(frozen=True)
class SatelliteArguments:
    """Satellite catalogues instead of files.

    Args:
        stac: STAC API, catalog.json, items.json or items.parquet; MODALITY=ADDRESS for a single modality.
        aoi: GeoJSON of the area, in longitude and latitude. Each of its UTM zones gets a map.
        date: Day or range of days, e.g. 2023-06-01/2023-06-30. For a model of several dates, a range for each date,
            separated by commas, or one range that is divided evenly.
        catalogue: Rules for names of assets and offsets: planetary_computer, earth_search, cdse, or a YAML file
            (default: chosen by the address).
        collection: Collection of a modality, if it is not the usual one; repeatable.
        skip_scenes: Ids of scenes that are not used.
        workers: Processes that read scenes ahead of the model.
        scheduler: Address or file of a running dask scheduler.
    """

    stac: list[RemotePath | Path] | None = None
    aoi: Path | None = None
    date: str | None = None
    catalogue: list[str] | None = None
    collection: dict[str, str] | None = None
    skip_scenes: list[str] | None = None
    workers: int = 1
    scheduler: str | None = None

    def asked(self, *, given: bool, otherwise: str = "FILE ... --modality NAME") -> bool:
        """Return whether the scenes come from catalogues, after checking that area and dates are given.

        Args:
            given: Whether files are given.
            otherwise: Arguments that would give files, for the message.

        Raises:
            ConfigError: Both or neither are given, or the area or the dates are missing.
        """
        if given == (self.stac is not None):
            raise ConfigError(f"Give {otherwise}, or --stac CATALOGUE --aoi AREA.geojson --date RANGE: one of the two.")
        if self.stac is not None:
            self.where_and_when()
        return self.stac is not None

    def where_and_when(self) -> tuple[Path, str]:
        """Return the area and the dates.

        Raises:
            ConfigError: One of them is missing.
        """
        if self.aoi is None or self.date is None:
            missing = "--aoi AREA.geojson" if self.aoi is None else "--date 2023-06-01/2023-06-30"
            raise ConfigError(f"--stac needs {missing}.")
        return self.aoi, self.date


@dataclass(frozen=True)
class Options:
    """Windows, devices and files.

    Args:
        out: Folder to write to.
        crop: Height and width of a window in pixels (default: as in training).
        stride: Distance between neighbouring windows in pixels (default: 0.85 of crop).
        margin: Pixels at the edges of a window that are not used.
        batch_size: Number of windows in a batch.
        precision: Precision of the model; bf16 takes half the time.
        cog: Write Cloud-Optimized GeoTIFFs.
        restart: Start again instead of resuming an unfinished run.
        accelerator: Kind of device; auto takes a GPU if there is one.
        devices: Number of processes on each machine.
        nodes: Number of machines.
        compile: Compilation of the model: graphs only on a GPU, default on any device, or off; auto means graphs
            for 1000 batches or more, since compiling takes a minute.
    """

    out: Path
    crop: int | None = None
    stride: int | None = None
    margin: int = 8
    batch_size: int = 8
    precision: Literal["32", "bf16", "16"] = "32"
    cog: bool = False
    restart: bool = False
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int = 1
    nodes: int = 1
    compile: Literal["auto", "graphs", "default", "off"] = "auto"

    def settle(self, crop: int, patch: int) -> Options:
        """Return options in which crop and stride are set.

        Args:
            crop: Height and width of a window in pixels, used if none is given.
            patch: Patch size of the model in pixels; a default stride is a multiple of it.

        Raises:
            ConfigError: The margin is not possible.
        """
        crop = crop if self.crop is None else self.crop
        if not 0 <= 2 * self.margin < crop:
            raise ConfigError(f"margin must be at least 0 and less than half of crop {crop}, got {self.margin}.")
        stride = self.stride
        if stride is None:
            stride = max(1, round((1 - WINDOW_OVERLAP) * (crop - 2 * self.margin)))
            stride = stride // patch * patch or stride
        return replace(self, crop=crop, stride=stride)

    def check(self) -> None:
        """Raise a ConfigError if a number is not possible, or this machine lacks the devices asked for."""
        import torch

        for name in ("batch_size", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        kind, count = self.device_type(), torch.cuda.device_count()
        if kind == "cuda" and self.devices > count:
            raise ConfigError(
                f"devices must be at most {count}, the number of GPUs of this machine; got {self.devices}."
            )
        if kind == "cpu" and self.precision == "16":
            raise ConfigError("precision 16 needs a GPU. On a CPU use precision bf16.")

    def device_type(self) -> str:
        """Return PyTorch's name of the accelerator, see the function `device_type`."""
        return device_type(self.accelerator)

    def for_batches(self, count: int) -> Options:
        """Return options in which `compile` is decided for a number of batches."""
        return replace(self, compile=choose_mode(self.compile, count))

    def compiles(self) -> bool:
        """Return whether the model runs as compiled graphs, which work best with batches of one size."""
        from terramind_plugin.model.compiled import compiles_on

        return compiles_on(self.compile, self.device_type())

    def describe(self) -> dict[str, Any]:
        """Return the options that determine the results."""
        names = ("crop", "stride", "margin", "batch_size", "cog")
        return {**{name: getattr(self, name) for name in names}, "precision": PRECISIONS[self.precision]}


@dataclass(frozen=True)
class EmbeddingOptions(Options):
    """Windows, devices and files.

    Args:
        out: Folder to write to.
        crop: Height and width of a window in pixels (default: as in training).
        stride: Distance between neighbouring windows in pixels (default: no overlap). Overlapping vectors are blended.
        margin: Pixels at the edges of a window that are not used, a multiple of the patch size.
        batch_size: Number of windows in a batch.
        precision: Precision of the model; bf16 takes half the time.
        cog: Write Cloud-Optimized GeoTIFFs, as --format cog does.
        restart: Start again instead of resuming an unfinished run.
        accelerator: Kind of device; auto takes a GPU if there is one.
        devices: Number of processes on each machine.
        nodes: Number of machines.
        compile: Compilation of the model: graphs only on a GPU, default on any device, or off; auto means graphs
            for 1000 batches or more, since compiling takes a minute.
    """

    margin: int = 0

    def settle(self, crop: int, patch: int) -> Options:
        """Return options in which crop and stride are set, see `Options.settle`; by default windows do not overlap."""
        crop = crop if self.crop is None else self.crop
        stride = max(1, crop - 2 * self.margin) if self.stride is None else self.stride
        return Options.settle(replace(self, stride=stride), crop, patch)


def choose_mode(compile: str, batches: int) -> Any:
    """Return the mode of compilation, see `compile_model`; `auto` is decided by the number of batches."""
    if compile != "auto":
        return compile
    return "graphs" if batches >= MANY_BATCHES else "off"


def device_type(accelerator: str) -> str:
    """Return PyTorch's name of a kind of device, e.g. 'cuda'.

    Args:
        accelerator: 'auto', 'cpu', 'gpu', 'cuda' or 'mps'.

    Raises:
        ConfigError: This machine has no such device.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(name for name in there if there[name])
    kind = accelerator
    if kind == "gpu":
        kind = "mps" if there["mps"] and not there["cuda"] else "cuda"
    if not there.get(kind):
        raise ConfigError(f"accelerator {accelerator} is not possible: this machine has no such device.")
    return kind
