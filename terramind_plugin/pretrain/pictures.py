"""What a tokenizer gives back, in TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from terramind_plugin.model.modalities import Modality
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.plotting import make_axes, plot_modality


class ReconstructionImages(Callback):
    """Draws the first validation images beside their reconstructions, for `TokenizerTask`.

    Args:
        samples: How many images.
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
        writer: Any = getattr(trainer.logger, "experiment", None)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not hasattr(writer, "add_figure"):
            return
        images = batch["image"][: self.samples]
        tokenizer: Any = pl_module.model
        with torch.no_grad():
            made = tokenizer(images, timesteps=self.timesteps)
        figure = draw_pairs(images.cpu(), made.float().cpu(), tokenizer.variant.modality)
        writer.add_figure(f"reconstructions/{tokenizer.variant.modality.name}", figure, trainer.global_step)


def draw_pairs(images: Tensor, made: Tensor, modality: Modality) -> Any:
    """Return a matplotlib figure: images above, reconstructions below.

    Args:
        images: Standardised [N, bands, H, W], or class ids [N, H, W].
        made: Standardised [N, bands, H, W], or scores of the classes [N, classes, H, W].
        modality: What they show.
    """
    figure, axes = make_axes(2, len(images), (2.6 * len(images), 5.4))
    for row, (title, stack) in enumerate((("image", images), ("reconstruction", made))):
        for column, image in enumerate(stack):
            plot_modality(modality.name, measured(image, modality), axes[row, column])
            axes[row, column].set_title(f"{modality.name}, {title}", fontsize=9)
    return figure


def measured(image: Tensor, modality: Modality) -> Tensor:
    """Return a standardised image [bands, H, W] in its units; class ids and scores as they are."""
    if modality.kind == "classes":
        return image
    return Standardisation(modality.mean, modality.std).undo(image)
