"""Lightning callbacks for fine-tuning and prediction; name one in trainer.callbacks and the plugin is loaded."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from terratorch.cli_tools import CustomWriter
from torch import Tensor

from terramind_plugin.data.classes import class_names_of
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.geo.raster import parse_color, write_geotiff
from terramind_plugin.plotting import LABEL_COLORS, plot_sample
from terramind_plugin.thoughts import ThoughtPainter, find_thinker

logger = logging.getLogger("terramind_plugin")

NO_CLASS = 255
"""Value of a class map where the input has no data."""


class FiniteLoss(Callback):
    """Stops training with an error when the loss is NaN or infinite, and names the files of that batch.

    On a GPU losses are looked at together, every `log_every_n_steps` steps, so that no step waits for the device.
    """

    def __init__(self) -> None:
        self._unseen: list[tuple[int, Tensor, Any]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of a step.

        Raises:
            DataError: It is not finite.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        names = batch.get("filename") if isinstance(batch, Mapping) else None
        self._unseen.append((batch_idx, loss.detach(), names))
        if loss.device.type == "cpu" or len(self._unseen) >= trainer.log_every_n_steps:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the losses that are left."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        unseen, self._unseen = self._unseen, []
        for batch_idx, loss, names in unseen:
            if not torch.isfinite(loss).all():
                raise DataError(
                    f"The loss is {loss.item()} in epoch {trainer.current_epoch}, step {batch_idx}. "
                    f"Files of the batch: {_some_names(names)}. Usual causes: pixels without data that are not filled "
                    "(leave no_data_replace out), labels that are all ignored, or a learning rate that is too high."
                )


def _some_names(names: Any) -> str:
    if isinstance(names, Mapping):
        names = next(iter(names.values()), [])
    return ", ".join(str(name) for name in list(names or ["unknown"])[:8])


class BackboneUnfreeze(Callback):
    """Keeps the backbone frozen until an epoch, then trains it, too.

    Its learning rate is the task's `lr_overrides: {model.encoder.: 1.e-5}`. With several processes use the strategy
    ddp_find_unused_parameters_true.

    Args:
        epoch: First epoch, counted from 0, in which the backbone trains.
    """

    def __init__(self, epoch: int) -> None:
        if epoch < 1:
            raise ConfigError(f"BackboneUnfreeze: epoch must be at least 1, got {epoch}.")
        self.epoch = epoch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the backbone, adapters included."""
        backbone = _backbone(pl_module)
        backbone.requires_grad_(False)
        backbone.eval()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreeze the backbone if its epoch has come; also after resuming beyond it."""
        backbone = _backbone(pl_module)
        if trainer.current_epoch >= self.epoch and not any(p.requires_grad for p in backbone.parameters()):
            backbone.unfreeze()
            logger.info("Epoch %d: the backbone trains from here on.", trainer.current_epoch)


def _backbone(pl_module: LightningModule) -> Any:
    encoder = getattr(pl_module.model, "encoder", None)
    backbone = getattr(encoder, "encoder", encoder)
    found = encoder if hasattr(encoder, "unfreeze") else backbone
    if not hasattr(found, "unfreeze"):
        raise ConfigError(
            f"BackboneUnfreeze needs a TerraMind backbone of this plugin, got {type(encoder).__name__}. "
            "Use backbone: terramind_v1_base or another size."
        )
    return found


class SegmentationImages(Callback):
    """Writes inputs, label and prediction of the first validation samples to TensorBoard, one tag a sample.

    Of a model that thinks it also shows the thought.

    Args:
        samples: How many samples.
        every_n_epochs: In which epochs.
        tokenizer_ckpt_paths: Files with tokenizer weights by modality, to draw imagined land cover as a map; without
            one the published weights are used if they are in the hub's cache.
    """

    def __init__(
        self,
        samples: int = 4,
        every_n_epochs: int = 1,
        tokenizer_ckpt_paths: dict[str, str] | None = None,
    ) -> None:
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self._painter = ThoughtPainter(tokenizer_ckpt_paths)
        self._drawn = 0
        self._files: dict[str, Path] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the first sample again."""
        self._drawn = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw samples until there are enough."""
        writer = getattr(trainer.logger, "experiment", None)
        due = trainer.is_global_zero and trainer.current_epoch % self.every_n_epochs == 0
        # TerraTorch's own plot moves the modalities out of 'image'.
        if not due or writer is None or not hasattr(writer, "add_figure") or self._drawn >= self.samples:
            return
        if "image" not in batch or "mask" not in batch:
            return
        images = batch["image"] if isinstance(batch["image"], Mapping) else {"image": batch["image"]}
        first = next(iter(images.values()))
        if first.ndim != 4:
            return
        extra = {key: batch[key] for key in batch.keys() - {"image", "mask", "filename"}}
        with torch.no_grad():
            predicted = pl_module(batch["image"], **extra).output.argmax(dim=1)
        thinker = find_thinker(pl_module)
        datamodule = getattr(trainer, "datamodule", None)
        images = _as_measured(images, datamodule)
        names = batch.get("filename", {})
        names = next(iter(names.values())) if isinstance(names, Mapping) and names else names
        for index in range(min(len(first), self.samples - self._drawn)):
            name = self._tag(Path(str(names[index]))) if names else f"{batch_idx}_{index}"
            figure = plot_sample(
                {key: value[index].float() for key, value in images.items()},
                batch["mask"][index],
                predicted[index],
                class_names_of(pl_module, datamodule) or None,
                name,
                bands=getattr(datamodule, "bands_read", None),
                pictures=None if thinker is None else self._painter.paint(thinker, index),
            )
            writer.add_figure(f"validation/{name}", figure, global_step=trainer.global_step)
            self._drawn += 1

    def _tag(self, file: Path) -> str:
        """Return a sample's name: that of its file, with the folder in front if another sample has the same."""
        return file.stem if self._files.setdefault(file.stem, file) == file else f"{file.parent.name}/{file.stem}"


def _as_measured(images: Mapping[str, Tensor], datamodule: Any) -> Mapping[str, Tensor]:
    """Return images in their units again, as far as the data module knows them."""
    means, stds = getattr(datamodule, "band_means", {}), getattr(datamodule, "band_stds", {})

    def measured(name: str, image: Tensor) -> Tensor:
        if name not in means or len(means[name]) != image.shape[1]:
            return image
        mean, std = (image.new_tensor(numbers[name])[:, None, None] for numbers in (means, stds))
        return image * std + mean

    return {name: measured(name, image) for name, image in images.items()}


class GeoTiffWriter(BasePredictionWriter):
    """Writes predictions as GeoTIFFs on the input's grid, in place of TerraTorch's writer.

    Class maps are uint8 with 255 where no input band has data, with class names and colours; probabilities, logits and
    regressions are float32 with NaN there. A file takes the input's name and its folder below the data root, so equal
    names in different folders stay apart, and appears only when it is complete. Predictions of one value or class a
    sample go to a table, predictions.csv.

    Args:
        output_dir: Where to; None takes `--predict_output_dir`.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self._written: dict[Path, str] = {}
        self._rows: list[list[Any]] = []

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Take over from TerraTorch's writer.

        Raises:
            ConfigError: There is no output folder.
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
        self._written.clear()
        self._rows.clear()

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
        """Write the predictions of a batch."""
        outputs, names = prediction
        outputs = [outputs] if isinstance(outputs, Tensor | tuple) else outputs
        sources = names if isinstance(names, Mapping) else {"image": names}
        for output in outputs:
            values, suffix = output if isinstance(output, tuple) else (output, "pred")
            for index, array in enumerate(values.detach().cpu()):
                files = {name: str(paths[index]) for name, paths in sources.items() if isinstance(paths[index], str)}
                if values.ndim < 3:
                    self._rows.append([next(iter(files.values()), index), *array.flatten().tolist()])
                else:
                    self._write(trainer, pl_module, array.float().numpy(), files, suffix, values.is_floating_point())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of predictions that are no maps."""
        if not self._rows:
            return
        names = class_names_of(pl_module, getattr(trainer, "datamodule", None))
        classes = all(len(row) == 2 and isinstance(row[1], int) for row in self._rows)
        header = ["file", "class"] if classes else ["file", *(f"value_{i}" for i in range(len(self._rows[0]) - 1))]
        rows = [[*row, names[row[1]]] if classes and names else row for row in self._rows]
        header += ["class_name"] if classes and names else []
        rank = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        target = Path(str(self.output_dir)) / f"predictions{rank}.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".csv.part")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        partial.replace(target)

    def _write(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        array: np.ndarray,
        files: Mapping[str, str],
        suffix: str,
        continuous: bool,
    ) -> None:
        source = next(iter(files.values()))
        target = self._target(trainer, source, suffix)
        array = array[None] if array.ndim == 2 else array
        with rasterio.open(source) as raster:
            crs, transform, shape = raster.crs, raster.transform, raster.shape
        if array.shape[1:] != shape:
            raise DataError(
                f"{source} has {list(shape)} pixels, its prediction {list(array.shape[1:])}: "
                "test_transform changes the size. Remove it, the model takes any size."
            )
        valid = has_data(set(files.values()), shape)
        class_names = class_names_of(pl_module, getattr(trainer, "datamodule", None))
        if continuous:
            data, nodata = np.where(valid, array, np.nan).astype(np.float32), np.nan
            descriptions = tuple(class_names) if len(class_names) == len(array) else ()
            colormap = None
        else:
            data, nodata = np.where(valid, array, NO_CLASS).astype(np.uint8), NO_CLASS
            descriptions = ("class",)
            count = max(len(class_names), int(pl_module.hparams["model_args"].get("num_classes") or 0), 1)
            colormap = {i: parse_color(LABEL_COLORS[i % len(LABEL_COLORS)]) for i in range(count)}
        tags = {f"class_{i}": name for i, name in enumerate(class_names)} if not continuous else {}
        target.parent.mkdir(parents=True, exist_ok=True)
        write_geotiff(
            target,
            data,
            crs=crs,
            transform=transform,
            descriptions=descriptions,
            nodata=nodata,
            colormap=colormap,
            tags=tags,
        )

    def _target(self, trainer: Trainer, source: str, suffix: str) -> Path:
        roots = getattr(getattr(trainer, "datamodule", None), "predict_root", None) or {}
        folder = Path()
        for root in roots.values() if isinstance(roots, Mapping) else [roots]:
            if Path(source).resolve().is_relative_to(Path(root).resolve()):
                folder = Path(source).resolve().relative_to(Path(root).resolve()).parent
                break
        prefix = getattr(trainer, "output_file_prefix", None)
        stem = f"{prefix}_{Path(source).stem}" if prefix else Path(source).stem
        target = Path(str(self.output_dir)) / folder / f"{stem}_{suffix}.tif"
        before = self._written.setdefault(target, source)
        if before != source:
            raise DataError(f"{before} and {source} would both be written to {target}. Predict them into two folders.")
        return target


def has_data(files: set[str], shape: tuple[int, int]) -> np.ndarray:
    """Return a boolean [H, W], True where some band of some file has data.

    Args:
        files: Rasters on one grid; others than that size are left out.
        shape: Height and width.
    """
    valid = np.zeros(shape, dtype=bool)
    for file in files:
        with rasterio.open(file) as raster:
            if raster.shape != shape:
                continue
            values = raster.read()
            here = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)
            if raster.nodata is not None and not np.isnan(raster.nodata):
                here &= values != raster.nodata
            valid |= here.any(axis=0)
    return valid
