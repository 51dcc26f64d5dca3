"""Output of `predict`: GeoTIFFs on the grid of the input."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.data.arguments import STAGES
from terramind_plugin.data.classes import class_names_of
from terramind_plugin.data.results import FiniteResults, PredictionTable, describe_files, is_detection
from terramind_plugin.data.terratorch_internals import CustomWriter
from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.plotting.pictures import LABEL_COLORS
from terramind_plugin.raster.georeference import check_georeference
from terramind_plugin.raster.missing import read_pixels
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.writer import parse_color, write_geotiff
from terramind_plugin.system.process import Stopped, identify

logger = logging.getLogger("terramind_plugin")

NO_CLASS = 255
"""Value of a class map where the input has no data."""
UNDECIDED = "int16"
"""TerraTorch's default of --out_dtype. It suits neither classes nor probabilities and counts as not given."""
CLASS_TYPES = ("uint8", "uint16", "int32", "uint32", "float32", "float64")
CONTINUOUS_TYPES = ("float32", "float64")


class GeoTiffWriter(BasePredictionWriter):
    """Writes predictions as GeoTIFFs on the input's grid, in place of TerraTorch's writer.

    Class maps are uint8 with class names and colours; they are 255 where no input band has data or the scores are not
    finite. Probabilities, logits and regressions are float32 and NaN there. `--out_dtype` asks for another type, except
    with its default, int16. A file gets the input's name and its folder below the data root, so that equal names in
    different folders stay separate. It appears only when it is complete.

    Predictions for whole images go to a table, predictions.csv, with a row for each image: 'file' and 'class' with
    'class_name' for one class, a column of probabilities for each class of a multi-label task, 'value' for one number
    or a column for each of the task's `var_names`. Detections have a row for each box: 'file', 'xmin', 'ymin', 'xmax',
    'ymax' in pixels, 'class', 'class_name' and 'score'.

    `TerraMindDataModule` adds this callback when it predicts.

    Args:
        output_dir: Folder to write to; None uses `--predict_output_dir`.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self._types = CLASS_TYPES[0], CONTINUOUS_TYPES[0]
        self._written: dict[Path, str] = {}
        self._table = PredictionTable()
        self._results: FiniteResults | None = None
        self._undeclared: dict[Path | str, int] = {}
        self._not_finite: dict[Path | str, int] = {}
        self._inputs: set[tuple[int, int] | None] | None = None

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Take over from TerraTorch's writer.

        Raises:
            ConfigError: There is no output folder, or --out_dtype is not a type that can be written.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        for theirs in [callback for callback in trainer.callbacks if isinstance(callback, CustomWriter)]:
            self.output_dir = self.output_dir or theirs.output_dir
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, CustomWriter)]
        self.output_dir = self.output_dir or getattr(trainer, "predict_output_dir", None)
        if self.output_dir is None:
            raise ConfigError("predict needs an output folder: --predict_output_dir DIR.")
        os.makedirs(self.output_dir, exist_ok=True)  # fails before the model starts
        self._types = choose_types(getattr(trainer, "out_dtype", None) or UNDECIDED)
        self._written.clear()
        self._table = PredictionTable()
        self._undeclared.clear()
        self._not_finite.clear()
        self._inputs = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the scores from which the task computes classes."""
        self._results = FiniteResults(pl_module)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the predictions of a batch, and stop after them if the run has received SIGTERM.

        Raises:
            ConfigError: A prediction would replace an image or a label.
            Stopped: The run has received SIGTERM, which Lightning would only record.
        """
        if is_detection(prediction):
            self._table.add_boxes(batch.get("filename", ()), prediction)
            outputs, names = [], ()
        else:
            outputs, names = prediction
        outputs = [outputs] if isinstance(outputs, Tensor | tuple) else outputs
        sources = names if isinstance(names, Mapping) else {"image": names}
        wrong = None if self._results is None or self._results.wrong is None else self._results.wrong.cpu().numpy()
        for output in outputs:
            values, suffix = output if isinstance(output, tuple) else (output, "pred")
            for index, array in enumerate(values.detach().cpu()):
                files = {name: str(paths[index]) for name, paths in sources.items() if isinstance(paths[index], str)}
                bad = None if wrong is None or len(wrong) != len(values) else wrong[index]
                if values.ndim < 3:
                    self._add_row(next(iter(files.values()), str(index)), array, bad)
                else:
                    self._write(
                        trainer, pl_module, array.float().numpy(), files, suffix, values.is_floating_point(), bad
                    )
        if trainer.received_sigterm:
            raise Stopped(signal.SIGTERM)

    def _add_row(self, name: str, array: Tensor, bad: Any) -> None:
        """Add a sample's prediction to the table; an empty row if its scores are not finite."""
        lost = (bad is not None and bool(np.any(bad))) or not array.isfinite().all()
        if lost:
            self._not_finite[name] = 1
        self._table.add(name, array, lost=lost)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of predictions, print where the results are, and log those that were not finite."""
        if self._results is not None:
            self._results.stop()
            self._results = None
        if self._undeclared:
            what = "are not finite or beyond 1e30 and counted as missing."
            logger.warning("%s", describe_files(self._undeclared, f"{what} terramind check says more."))
        if self._not_finite:
            what = f"have no finite result and are {NO_CLASS} or NaN in maps, and empty in tables."
            logger.warning(
                "%s", describe_files(self._not_finite, f"{what} Check the values of the files and the weights.")
            )
        class_names = class_names_of(pl_module, getattr(trainer, "datamodule", None))
        rank = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        target = Path(str(self.output_dir)) / f"predictions{rank}.csv"
        self._table.write(target, class_names, pl_module.hparams.get("var_names") or ())
        if self._written:
            print(f"{counted(len(self._written), 'prediction')} in {self.output_dir}", flush=True)
        elif target.exists():
            print(target, flush=True)

    def _write(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        array: NDArray[Any],
        files: Mapping[str, str],
        suffix: str,
        continuous: bool,
        bad: NDArray[np.bool_] | None,
    ) -> None:
        source = next(iter(files.values()))
        target = self._target(trainer, source, suffix)
        array = array[None] if array.ndim == 2 else array
        with rasterio.open(raster_name(source)) as raster:
            check_georeference(raster)
            crs, transform, shape = raster.crs, raster.transform, raster.shape
        if array.shape[1:] != shape:
            raise DataError(
                f"{source} has {list(shape)} pixels, but its prediction has {list(array.shape[1:])}: "
                "test_transform changes the size. Remove it: the model accepts any size."
            )
        valid, undeclared = find_data(files.values(), shape)
        self._undeclared |= undeclared
        known = np.isfinite(array)
        if bad is not None and bad.shape == shape and not continuous:
            known &= ~bad
        lost = int((valid & ~known.all(axis=0)).sum())
        if lost:
            self._not_finite[source] = max(lost, self._not_finite.get(source, 0))
        dtype = self._types[continuous]
        nodata = np.nan if np.dtype(dtype).kind == "f" else NO_CLASS
        data = np.where(valid & known, array, nodata).astype(dtype)
        names = class_names_of(pl_module, getattr(trainer, "datamodule", None))
        texts = (
            {"descriptions": tuple(names) if len(names) == len(array) else ()}
            if continuous
            else _describe_classes(names, pl_module.hparams["model_args"].get("num_classes"), dtype)
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_geotiff(target, data, crs=crs, transform=transform, nodata=nodata, **texts)

    def _target(self, trainer: Trainer, source: str, suffix: str) -> Path:
        roots = getattr(getattr(trainer, "datamodule", None), "predict_root", None) or {}
        folder = Path()
        for root in roots.values() if isinstance(roots, Mapping) else [roots]:
            if Path(source).resolve().is_relative_to(Path(root).resolve()):
                folder = Path(source).resolve().relative_to(Path(root).resolve()).parent
                break
        prefix = getattr(trainer, "output_file_prefix", None)
        stem = Path(source).stem.removesuffix(".zarr")
        stem = f"{prefix}_{stem}" if prefix else stem
        target = Path(str(self.output_dir)) / folder / f"{stem}_{suffix}.tif"
        before = self._written.setdefault(target, source)
        if before != source:
            raise DataError(f"{before} and {source} would both be written to {target}. Predict them into two folders.")
        if target.parent.resolve() == Path(source).resolve().parent:
            raise ConfigError(
                f"{target} would lie among the images and count as one of them in the next run. Choose another "
                "--predict_output_dir."
            )
        if target.exists():
            if self._inputs is None:
                self._inputs = _files_of(getattr(trainer, "datamodule", None))
            if identify(target) in self._inputs | {identify(source)}:
                raise ConfigError(
                    f"{target} is an image or a label and would be overwritten. Choose another --predict_output_dir."
                )
        return target


def _describe_classes(names: Sequence[str], count: object, dtype: str) -> dict[str, Any]:
    """Return names and colours of a class map, as `write_geotiff` expects them.

    Raises:
        ConfigError: There are more classes than a class map can hold.
    """
    number = max(len(names), int(str(count or 0)), 1)
    if number > NO_CLASS:
        raise ConfigError(f"A class map holds at most {NO_CLASS} classes ({NO_CLASS} means no data), got {number}.")
    described: dict[str, Any] = {
        "descriptions": ("class",),
        "tags": {f"class_{index}": name for index, name in enumerate(names)},
    }
    if dtype in ("uint8", "uint16"):  # only these have colour tables
        described["colormap"] = {i: parse_color(LABEL_COLORS[i % len(LABEL_COLORS)]) for i in range(number)}
    return described


def _files_of(datamodule: Any) -> set[tuple[int, int] | None]:
    """Return the identities of all images and labels of a data module, including other splits."""
    dataset = getattr(datamodule, "predict_dataset", None)
    files = {path for sample in getattr(dataset, "samples", None) or () for path in sample.values()}
    patterns = getattr(datamodule, "image_grep", None)
    labels = [getattr(datamodule, f"{split}_label_data_root", None) for split in STAGES]
    folders = [(root, getattr(datamodule, "label_grep", None)) for root in labels]
    for split in STAGES:
        roots = getattr(datamodule, f"{split}_root", None)
        for name, root in roots.items() if isinstance(roots, Mapping) else ():
            folders.append((root, patterns.get(name) if isinstance(patterns, Mapping) else None))
    for root, pattern in folders:
        if isinstance(root, str | Path) and os.path.isdir(root):
            files.update(Path(root).glob(str(pattern or "*")))
    return {identify(path) for path in files if isinstance(path, str | Path)}


def take_over(trainer: Any) -> None:
    """Replace TerraTorch's writer, if it is among the callbacks of a trainer, by this package's writer.

    If a task writes its results itself, nothing is added.
    """
    callbacks = getattr(trainer, "callbacks", None) or []
    if getattr(getattr(trainer, "lightning_module", None), "writes_itself", False):
        trainer.callbacks = [one for one in callbacks if not isinstance(one, CustomWriter | GeoTiffWriter)]
        return
    if any(isinstance(callback, GeoTiffWriter) for callback in callbacks):
        return
    if any(isinstance(callback, CustomWriter) for callback in callbacks):
        trainer.callbacks = [*callbacks, GeoTiffWriter()]


def choose_types(asked: str) -> tuple[str, str]:
    """Return the types of class maps and of continuous values.

    Args:
        asked: Value of --out_dtype.

    Raises:
        ConfigError: A class map cannot have this type.
    """
    if asked == UNDECIDED:
        return CLASS_TYPES[0], CONTINUOUS_TYPES[0]
    if asked not in CLASS_TYPES:
        raise ConfigError(
            f"--out_dtype {asked}: a map of classes with {NO_CLASS} for no data can be {', '.join(CLASS_TYPES)}. Leave "
            f"--out_dtype out for {CLASS_TYPES[0]} classes and {CONTINUOUS_TYPES[0]} probabilities."
        )
    if asked not in CONTINUOUS_TYPES:
        logger.info("--out_dtype %s applies to class maps; other values stay %s.", asked, CONTINUOUS_TYPES[0])
        return asked, CONTINUOUS_TYPES[0]
    return asked, asked


def find_data(files: Iterable[str], shape: tuple[int, int]) -> tuple[NDArray[np.bool_], dict[Path | str, int]]:
    """Return where some band of some file has data, and the numbers of undeclared missing pixels.

    Args:
        files: Rasters on one grid; rasters of another size are left out.
        shape: Height and width.

    Returns:
        Boolean [H, W], True where there is data, and the number of undeclared missing pixels by file.
    """
    valid = np.zeros(shape, dtype=bool)
    undeclared: dict[Path | str, int] = {}
    for file in sorted(set(files)):
        with rasterio.open(raster_name(file)) as raster:
            if raster.shape != shape:
                continue
            pixels = read_pixels(raster)
        valid |= True if pixels.missing is None else ~pixels.missing.all(axis=0)
        if pixels.undeclared:
            undeclared[file] = pixels.undeclared
    return valid, undeclared
