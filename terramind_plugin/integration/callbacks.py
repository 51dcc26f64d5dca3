"""Lightning callbacks for fine-tuning and prediction; name one in trainer.callbacks and the plugin is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from terramind_plugin.backbones.encoder import find_backbone
from terramind_plugin.data.classes import class_names_of
from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.integration.drawing import (
    GeneratedPainter,
    draw_sample,
    find_tim,
    keys_of,
    labels_of,
    predict,
)
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.modalities import Modality, is_position
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.plotting.panels import make_axes
from terramind_plugin.plotting.pictures import plot_modality
from terramind_plugin.system.process import settle_status

logger = logging.getLogger("terramind_plugin")


class FiniteLoss(Callback):
    """Stops training with an error that names the files of the batch if the loss is NaN or infinite.

    On a GPU the losses of `log_every_n_steps` steps are checked together, so that single steps do not wait for the
    device.
    """

    def __init__(self) -> None:
        self._unchecked: list[tuple[int, Tensor, Any]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss of a step.

        Raises:
            DataError: The loss is not finite.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        names = batch.get("filename") if isinstance(batch, Mapping) else None
        self._unchecked.append((batch_idx, loss.detach(), names))
        if loss.device.type == "cpu" or len(self._unchecked) >= trainer.log_every_n_steps:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the remaining losses."""
        self._check(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the process the exit status 143 if SIGTERM has stopped the run."""
        settle_status(exception, stopped=trainer.received_sigterm)

    def _check(self, trainer: Trainer) -> None:
        unchecked, self._unchecked = self._unchecked, []
        # All losses are checked at once, so that the CPU waits for the GPU once.
        if not unchecked or torch.stack([loss.isfinite().all() for _, loss, _ in unchecked]).all():
            return
        for batch_idx, loss, names in unchecked:
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
    """Freezes the backbone for the first epochs, and then trains it as well.

    The task's `lr_overrides: {model.encoder.: 1.e-5}` sets the learning rate of the backbone. With several processes
    use the strategy ddp_find_unused_parameters_true.

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
        """Unfreeze the backbone from its epoch on, also if a run is resumed after that epoch."""
        backbone = _backbone(pl_module)
        if trainer.current_epoch >= self.epoch and not any(p.requires_grad for p in backbone.parameters()):
            backbone.unfreeze()
            logger.info("Epoch %d: the backbone trains from now on.", trainer.current_epoch)


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
    """Writes inputs, label and prediction of the first validation samples to TensorBoard, with one tag for each sample.

    The drawing depends on the task: maps of classes; maps of continuous values with a colour bar; boxes; or, for one
    answer per image, label and prediction as text below the inputs. Several dates are drawn side by side, the first and
    the last ones if there are more than four. Generated modalities are drawn beside the inputs. Samples that cannot be
    drawn are left out, with the reason logged once.

    Args:
        samples: Number of samples.
        every_n_epochs: Interval of the drawings in epochs.
        tokenizer_ckpt_paths: Files with tokenizer weights by modality, to draw generated land cover as a map. Without a
            file, the published weights are used if they are in the hub's cache.
        unit: Unit of the labels of a regression, e.g. t/ha.
    """

    def __init__(
        self,
        samples: int = 4,
        every_n_epochs: int = 1,
        tokenizer_ckpt_paths: dict[str, str] | None = None,
        unit: str | None = None,
    ) -> None:
        if every_n_epochs < 1:
            raise ConfigError(f"SegmentationImages: every_n_epochs must be at least 1, got {every_n_epochs}.")
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self.unit = unit or ""
        self._painter = GeneratedPainter(tokenizer_ckpt_paths)
        self._drawn = 0
        self._files: dict[str, Path] = {}
        self._batch: dict[str, Any] | None = None
        self._said: set[str] = set()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the first sample again."""
        self._drawn = 0

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a copy of the batch if it will be drawn, because the plots of TerraTorch's tasks change it."""
        self._batch = None
        due = trainer.is_global_zero and trainer.current_epoch % self.every_n_epochs == 0
        if not due or self._drawn >= self.samples:
            return
        reason = _obstacle(trainer, pl_module, batch)
        if reason is not None:
            self._say(f"no pictures: {reason}.")
            return
        images = _by_modality(pl_module, batch["image"])
        for name in images.keys() - _drawable(images).keys():
            if is_position(name):
                continue
            self._say(f"{name} is not drawn: it is not an image.")
        self._batch = {**batch, "image": copy(batch["image"])}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw samples until there are enough; an error is logged once and does not end the validation."""
        kept, self._batch = self._batch, None
        if kept is None:
            return
        try:
            self._draw(trainer, pl_module, kept, batch_idx)
        except Exception as error:  # a failed picture must not stop the training
            self._say(f"no pictures: {type(error).__name__}: {one_line(str(error))}")
            self._drawn = self.samples  # no further attempt in this epoch

    def _draw(self, trainer: Trainer, pl_module: LightningModule, kept: dict[str, Any], batch_idx: int) -> None:
        """Draw samples of a batch until there are enough."""
        writer = _writer(trainer)
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            predicted = predict(pl_module, kept)
        labels = labels_of(pl_module, kept)
        datamodule = getattr(trainer, "datamodule", None)
        images = _as_measured(_drawable(_by_modality(pl_module, kept["image"])), datamodule)
        bands = getattr(datamodule, "bands_read", None) or _bands_of(pl_module)
        # A model that processes tiles or dates separately generates several images for a sample.
        parts = getattr(pl_module, "tiled_inference_on_validation", False) or any(x.ndim == 5 for x in images.values())
        tim = None if parts else find_tim(pl_module)
        names = kept.get("filename", {})
        names = next(iter(names.values())) if isinstance(names, Mapping) and names else names
        for index in range(min(len(next(iter(images.values()))), self.samples - self._drawn)):
            name = self._tag(Path(str(names[index]))) if names else f"{batch_idx}_{index}"
            figure = draw_sample(
                pl_module,
                {key: value[index].float() for key, value in images.items()},
                labels[index],
                predicted[index],
                class_names_of(pl_module, datamodule),
                name,
                self.unit,
                bands=bands,
                pictures=None if tim is None else self._painter.paint(tim, index),
            )
            figure.draw_without_rendering()  # TensorBoard draws once, and the first layout cuts off long texts
            writer.add_figure(f"validation/{name}", figure, global_step=trainer.global_step)
            self._drawn += 1

    def _say(self, text: str) -> None:
        """Log a warning that has not been logged before."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("SegmentationImages: %s", text)

    def _tag(self, file: Path) -> str:
        """Return the name of a sample's file, with the folder in front if another sample has the same name."""
        return file.stem if self._files.setdefault(file.stem, file) == file else f"{file.parent.name}/{file.stem}"


class ReconstructionImages(Callback):
    """Draws the first validation images beside their reconstructions in TensorBoard, for `TokenizerTask`.

    Args:
        samples: Number of images.
        timesteps: Denoising steps.
    """

    def __init__(self, samples: int = 4, timesteps: int = 10) -> None:
        self.samples = samples
        self.timesteps = timesteps

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch."""
        writer = _writer(trainer)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or writer is None:
            return
        images = batch["image"][: self.samples]
        tokenizer: Any = pl_module.model
        with torch.no_grad():
            made = tokenizer(images, timesteps=self.timesteps)
        modality = tokenizer.variant.modality
        figure = _draw_pairs(images.cpu(), made.float().cpu(), modality)
        writer.add_figure(f"reconstructions/{modality.name}", figure, trainer.global_step)


def _draw_pairs(images: Tensor, made: Tensor, modality: Modality) -> Any:
    """Return a matplotlib figure of standardised images or class ids: images above, reconstructions below."""
    standardisation = None if modality.kind == "classes" else Standardisation(modality.mean, modality.std)
    figure, axes = make_axes(2, len(images), (2.6 * len(images), 5.4))
    for row, (title, stack) in enumerate((("image", images), ("reconstruction", made))):
        for column, image in enumerate(stack):
            image = image if standardisation is None else standardisation.undo(image)
            plot_modality(modality.name, image, axes[row, column])
            axes[row, column].set_title(f"{modality.name}, {title}", fontsize=9)
    return figure


def _obstacle(trainer: Trainer, task: LightningModule, batch: Any) -> str | None:
    """Return the reason why a batch cannot be drawn, or None if it can."""
    if _writer(trainer) is None:
        return "no logger accepts figures, as TensorBoardLogger does"
    keys = keys_of(task)
    if not keys:
        return (
            f"TerraTorch's segmentation, regression, classification and detection have them, not {type(task).__name__}"
        )
    missing = [key for key in keys if not isinstance(batch, Mapping) or key not in batch]
    if missing:
        return f"the batch has no {missing[0]!r}"
    return None if _drawable(_by_modality(task, batch["image"])) else "no input is [batch, bands, height, width]"


def _writer(trainer: Trainer) -> Any:
    """Return the first logger that accepts figures, or None."""
    writers = (getattr(logger, "experiment", None) for logger in trainer.loggers)
    return next((writer for writer in writers if hasattr(writer, "add_figure")), None)


def _inputs_of(task: LightningModule) -> list[InputSpec]:
    """Return the inputs of this plugin's backbone; none for a model without one."""
    backbone = find_backbone(task)
    return [] if backbone is None else list(backbone.observed)


def _by_modality(task: LightningModule, images: Any) -> Mapping[str, Any]:
    """Return images by modality; images without a name belong to the first modality of the backbone."""
    if isinstance(images, Mapping):
        return images
    return {next((spec.name for spec in _inputs_of(task)), "image"): images}


def _bands_of(task: LightningModule) -> dict[str, list[str]]:
    """Return the bands of each modality from which the backbone selects bands; a new band has an empty name."""
    return {
        spec.name: ["" if band is None else spec.pretrained.bands[band].name for band in spec.band_sources]
        for spec in _inputs_of(task)
        if spec.pretrained is not None and spec.band_sources is not None
    }


def _drawable(images: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the images [batch, bands, H, W] or [batch, bands, dates, H, W], without positions and texts."""
    return {
        name: image
        for name, image in images.items()
        if isinstance(image, Tensor) and image.ndim in (4, 5) and not is_position(name)
    }


def _as_measured(images: Mapping[str, Tensor], datamodule: Any) -> Mapping[str, Tensor]:
    """Return images in their units, if the data module knows means and standard deviations."""
    means, stds = getattr(datamodule, "band_means", {}), getattr(datamodule, "band_stds", {})

    def measured(name: str, image: Tensor) -> Tensor:
        if name not in means or len(means[name]) != image.shape[1]:
            return image
        shape = (-1, *[1] * (image.ndim - 2))
        mean, std = (image.new_tensor(numbers[name]).view(shape) for numbers in (means, stds))
        return image * std + mean

    return {name: measured(name, image) for name, image in images.items()}
