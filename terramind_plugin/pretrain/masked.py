"""Stage 2: the encoder-decoder learns to predict masked tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.token_generator import plan_targets
from terramind_plugin.model.encoder_decoder import EncoderDecoder
from terramind_plugin.model.inputs import check_size
from terramind_plugin.model.modalities import resolve
from terramind_plugin.model.planning import plan_inputs
from terramind_plugin.model.variants import find_variant
from terramind_plugin.model.weights import load_encoder_decoder
from terramind_plugin.pretrain.masked_loss import MaskedBatch, MaskedLoss, masked_loss
from terramind_plugin.pretrain.masking import MaskPlan, draw_masks
from terramind_plugin.pretrain.task import PretrainingTask

logger = logging.getLogger("terramind_plugin")

SEQUENCE_LENGTHS = {"coords": 3}
"""Number of tokens of a sequence without its start: latitude, longitude and end."""


class MaskedModellingTask(PretrainingTask):
    """Trains the encoder-decoder to predict some tokens from other patches and tokens, in batches of `MaskedBatch`.

    Masks depend only on `seed`, batch number and process, so that a resumed run repeats the uninterrupted one, and
    every validation uses the same masks. For averaged weights, add Lightning's EMAWeightAveraging to the callbacks: it
    validates and saves the average. Backbones, Thinking-in-Modalities models and generators take the checkpoint as
    their `ckpt_path`.

    Source: TerraMind (arXiv:2504.11171) section 3.2 and 4M (arXiv:2312.06647). The optimiser settings are our choice.

    Args:
        variant: E.g. 'terramind_v1_base' or 'terramind_sim_nano'.
        pixels: Modalities that are read as patches.
        tokens: Image modalities that are read and predicted as token ids.
        sequences: Modalities that are read and predicted as a whole: coords.
        pretrained: Start from the published weights.
        ckpt_path: Start from the weights in this file instead.
        input_tokens: Minimum and maximum number of tokens to read from a sample; the number is drawn for each batch.
        target_tokens: Maximum number of tokens to predict in a sample.
        input_alphas: See `MaskPlan`.
        target_alphas: See `MaskPlan`.
        lead_in_steps: Number of optimiser steps at the start that use the next two arguments instead of the two above.
            With one easy task first, e.g. vegetation from optical patches, training needs far fewer steps than with
            all tasks at once.
        lead_in_input_alphas: `input_alphas` of the lead-in.
        lead_in_target_alphas: `target_alphas` of the lead-in.
        average: 'modality' weights modalities equally, as 4M does; 'token' weights all tokens equally.
        img_size: Height and width in pixels for the position embeddings; by default those of the variant.
        lr: Maximum learning rate.
        warmup_steps: Number of steps of the linear warm-up to `lr`; a cosine to zero at trainer.max_steps follows.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the masks.
    """

    monitor = "val/loss"
    model: EncoderDecoder

    def __init__(
        self,
        variant: str,
        pixels: Sequence[str] = (),
        tokens: Sequence[str] = (),
        sequences: Sequence[str] = (),
        pretrained: bool = False,
        ckpt_path: str | None = None,
        input_tokens: Sequence[int] = (32, 128),
        target_tokens: int = 128,
        input_alphas: Mapping[str, float] | None = None,
        target_alphas: Mapping[str, float] | None = None,
        lead_in_steps: int = 0,
        lead_in_input_alphas: Mapping[str, float] | None = None,
        lead_in_target_alphas: Mapping[str, float] | None = None,
        average: Literal["modality", "token"] = "modality",
        img_size: int | Sequence[int] | None = None,
        lr: float = 1e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()

    def configure_models(self) -> None:
        """Build the model and load the requested weights.

        Raises:
            ConfigError: The variant or a modality is unknown or of another kind, or a budget is not possible.
            WeightsError: The weights are missing or do not fit.
        """
        settings = self.hparams
        numbers = find_variant(settings["variant"])
        self.plan = make_plan(settings)
        self.lead_in = replace(
            self.plan,
            input_alphas=settings["lead_in_input_alphas"] or {},
            target_alphas=settings["lead_in_target_alphas"] or {},
        )
        targets = plan_targets([*self.plan.tokens, *self.plan.sequences])
        keys = [str(modality.token_key) for modality in targets.values()]
        img_size = numbers.img_size if settings["img_size"] is None else settings["img_size"]
        size = check_size(img_size, numbers.patch_size)
        inputs = plan_inputs([*self.plan.pixels, *keys], tokens=True)
        self.model = EncoderDecoder(numbers, inputs, list(targets.values()), img_size=size)
        if settings["pretrained"] or settings["ckpt_path"] is not None:
            logger.info("%s", load_encoder_decoder(self.model, settings["ckpt_path"]))

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        leading_in = self.global_step < self.hparams["lead_in_steps"]
        made = self._loss(batch, self.batch_number, self.lead_in if leading_in else self.plan)
        self.log("train/loss", made.loss, batch_size=1)
        self.log_dict(
            {f"train/{name}": made.by_modality[name] for name, count in made.counts.items() if count}, batch_size=1
        )
        return made.loss

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of losses."""
        self.sums = torch.zeros(2, len(self.plan.tokens) + len(self.plan.sequences), device=self.device)

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Add up losses."""
        made = self._loss(batch, -1 - batch_idx, self.plan)
        counts = torch.tensor(list(made.counts.values()), device=self.device)
        self.sums += torch.stack([torch.stack(list(made.by_modality.values())) * counts, counts])

    def on_validation_epoch_end(self) -> None:
        """Log the loss of each modality in nats per token, and their mean, over all processes."""
        gathered: Any = self.all_gather(self.sums)
        sums, counts = gathered.reshape(-1, *self.sums.shape).sum(dim=0)
        means = sums / counts.clamp(min=1)
        for name, mean in zip([*self.plan.tokens, *self.plan.sequences], means.unbind(), strict=True):
            self.log(f"val/{name}", mean)
        self.log("val/loss", means.mean())

    def _loss(self, batch: MaskedBatch, number: int, plan: MaskPlan) -> MaskedLoss:
        ids = batch["tokens"][self.plan.tokens[0]]
        count = ids.shape[-2] * ids.shape[-1]
        masks = draw_masks(plan, len(ids), count, self.make_generator(number), batch.get("present"))
        return masked_loss(self.model, batch, masks, average=self.hparams["average"])


def make_plan(settings: Mapping[str, Any]) -> MaskPlan:
    """Return the budgets of the task's arguments.

    Args:
        settings: The arguments of `MaskedModellingTask`.

    Raises:
        ConfigError: A modality is of another kind, or a budget is not possible.
    """
    pixels = [resolve(name) for name in settings["pixels"]]
    if pixels:
        plan_inputs([modality.name for modality in pixels])  # raises for modalities without pixels
    tokens, sequences = ([resolve(name) for name in settings[kind]] for kind in ("tokens", "sequences"))
    for modality in tokens:
        if modality.kind == "sequence":
            raise ConfigError(f"{modality.name} is a sequence. Move it from tokens to sequences.")
    for modality in sequences:
        if modality.name not in SEQUENCE_LENGTHS:
            raise ConfigError(f"sequences can name {', '.join(SEQUENCE_LENGTHS)}, got {modality.name}.")
    inputs = tuple(settings["input_tokens"])
    if len(inputs) != 2:
        raise ConfigError(f"input_tokens must be a minimum and a maximum, e.g. [32, 128], got {list(inputs)}.")
    return MaskPlan(
        tuple(modality.name for modality in pixels),
        tuple(modality.name for modality in tokens),
        {modality.name: SEQUENCE_LENGTHS[modality.name] for modality in sequences},
        inputs,
        settings["target_tokens"],
        settings["input_alphas"] or {},
        settings["target_alphas"] or {},
    )
