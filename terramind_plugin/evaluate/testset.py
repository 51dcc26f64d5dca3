"""Labelled chips of a configuration's test split."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.evaluate.compare import read_config
from terramind_plugin.integration.lightning_cli import ParsingCLI, make_cli
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.raster.bands import check_one_band
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.missing import is_odd, refuse_complex
from terramind_plugin.raster.reader import Expected
from terramind_plugin.samples.layout import LABEL
from terramind_plugin.samples.plan import DataPlan, ImagePlan, describe_data


@dataclass(frozen=True)
class Labels:
    """Meaning of the numbers in label files."""

    ignored: int | None
    """Class id that does not count."""
    shifted: bool
    """True if files number classes from 1, and 0 means no label."""
    classes: int | None
    """Number of classes; a nodata value below it is a class."""

    def read(self, path: Path) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return class ids [H, W], and a mask [H, W] of the pixels that count.

        Raises:
            DataError: The file cannot be read, or its values are not class ids.
        """
        try:
            with rasterio.open(path) as file:
                check_one_band(path, file.count)
                refuse_complex(path, file.dtypes)
                values, nodata = file.read(1).astype(np.float64), file.nodata
        except GDAL_ERRORS as error:
            raise DataError(f"{path} cannot be read as a label: {one_line(error)}") from error
        missing = is_odd(values)
        if nodata is not None and not 0 <= nodata - self.shifted < (self.classes or 0):
            missing |= values == nodata
        ids = np.where(missing, 0, values)
        if (ids != np.round(ids)).any():
            raise DataError(f"{path} is not a label: it holds {ids[ids != np.round(ids)][0]:g}, expected class ids.")
        shifted = ids.astype(np.int64) - self.shifted
        missing |= shifted < 0 if self.shifted else False
        return shifted, ~missing if self.ignored is None else ~missing & (shifted != self.ignored)


@dataclass(frozen=True)
class LabelledChip:
    """One labelled chip."""

    name: str
    files: Mapping[str, Path]
    """Files by name of the modality in the configuration; some may be missing."""
    label: Path


@dataclass(frozen=True)
class LabelledSet:
    """Test set of a configuration."""

    chips: Sequence[LabelledChip]
    expected: Mapping[str, Expected]
    """Expected content of the files by modality, in the order of the configuration."""
    scales: Mapping[str, tuple[float, float]]
    """Offset and factor that convert a file's values to the modality's units; the offset is added first."""
    labels: Labels

    def having(self, modalities: Sequence[str]) -> list[LabelledChip]:
        """Return the chips that have all these modalities."""
        return [chip for chip in self.chips if all(name in chip.files for name in modalities)]


@dataclass(frozen=True)
class Experiment:
    """Model and test set of a configuration."""

    variant: str
    pretrained: bool
    ckpt_path: Path | None
    test: LabelledSet


def read_experiment(config: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return model and test set of a configuration for `terratorch fit`, without training or loading anything.

    Args:
        config: YAML file.
        overrides: Further options of `terramind fit`.

    Raises:
        ConfigError: The configuration is invalid, or has no TerraMind backbone or another data module.
        DataError: Its test split lacks files.
    """
    read_config(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        cli = make_cli(["--config", str(config), *overrides], kind=_DataCLI)
    task = cli.config.get("model.init_args") or {}
    arguments = task.get("model_args") or {}
    backbone = str(arguments.get("backbone"))
    variant = backbone.removeprefix("terratorch_").removesuffix("_tim")
    if variant not in VARIANTS:
        raise ConfigError(
            f"{config}: model.init_args.model_args.backbone must be one of {', '.join(VARIANTS)}, got '{backbone}'."
        )
    plan = describe_data(cli.datamodule)
    if plan is None or plan.task != "segmentation":
        raise ConfigError(
            f"{config}: zero-shot mapping needs labelled maps: class_path: terramind_plugin.TerraMindDataModule with "
            f"task: segmentation, got {type(cli.datamodule).__name__}."
        )
    path = arguments.get("backbone_ckpt_path")
    return Experiment(
        variant,
        bool(arguments.get("backbone_pretrained")),
        None if path is None else Path(path),
        _read_test_set(plan, task.get("ignore_index"), config),
    )


class _DataCLI(ParsingCLI):
    """A command line that builds only the data module."""

    def instantiate_classes(self) -> None:
        """Build only the data module: the model would need its decoder and weights."""
        self.datamodule = self.make_part("data")


def _read_test_set(plan: DataPlan, ignored: int | None, config: Path) -> LabelledSet:
    images = {image.name: image for image in plan.images if _is_known(image)}
    if not images:
        raise ConfigError(f"{config}: none of data.modalities is one that TerraMind was pre-trained with.")
    split = next((split for split in plan.splits if split.name == "test"), None)
    if split is None or split.problem:
        reason = split.problem if split is not None else "data.init_args.test_data_root (or data_root) is missing"
        raise DataError(f"{config}: there is no test set: {reason}.")
    chips = []
    for name, files in split.samples.items():
        missing = [key for key in split.needed if key not in files]
        if missing and (LABEL in missing or not plan.missing_allowed):
            roots = ", ".join(plan.roots[f"test {key}"] for key in missing)
            raise DataError(
                f"Test sample {name} of {split.file or config} has no file of {', '.join(missing)} in {roots}."
            )
        if LABEL not in files:
            raise ConfigError(
                f"{config}: zero-shot mapping needs data.init_args.test_label_data_root (or label_data_root)."
            )
        chips.append(LabelledChip(name, {key: path for key, path in files.items() if key in images}, files[LABEL]))
    if not chips:
        raise DataError(f"{config}: the test split {split.file or ''} has no samples.")
    return LabelledSet(
        chips,
        {name: _expect(image) for name, image in images.items()},
        {name: (image.offset or 0.0, image.scale) for name, image in images.items()},
        Labels(ignored, plan.reduce_zero_label, plan.num_classes),
    )


def _is_known(image: ImagePlan) -> bool:
    """Return whether an image can be an input of the generator of land cover."""
    modality = image.modality
    if image.dates:
        raise ConfigError("Zero-shot mapping takes chips of one date; the configuration has several.")
    return modality is not None and modality.kind == "image"


def _expect(image: ImagePlan) -> Expected:
    """Return the expected content of files: all pre-training bands, whichever the configuration selects."""
    modality: Any = image.modality
    return Expected(
        modality.name,
        modality.band_names,
        tuple(value / image.scale - (image.offset or 0.0) for value in modality.mean),
        file_bands=image.file_bands,
        scale=image.scale,
        offset=image.offset or 0.0,
    )
