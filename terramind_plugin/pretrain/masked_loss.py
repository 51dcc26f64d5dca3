"""The loss of masked modelling for the tokens chosen to be read and to be predicted.

Only the chosen tokens are embedded and encoded, packed to one length, so that the cost depends only on the budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.decoding import START, STOP
from terramind_plugin.model.decoder import run_decoder
from terramind_plugin.model.encoder_decoder import Context, EncoderDecoder, Tokens
from terramind_plugin.model.modalities import resolve, token_key
from terramind_plugin.pretrain.masking import Masks

PADDING = -1


class MaskedBatch(TypedDict):
    """Tensors of a batch by modality; tensors of a single sample lack the first axis."""

    pixels: dict[str, Tensor]
    """Standardised images [B, bands, H, W]."""
    tokens: dict[str, Tensor]
    """Token ids [B, rows, columns]."""
    sequences: dict[str, Tensor]
    """Token ids [B, length] without a start and without padding, e.g. latitude, longitude and '[EOS]'."""
    present: NotRequired[dict[str, Tensor]]
    """Boolean [B] by image modality, False if a sample lacks it; its pixels and tokens may then be any numbers."""


class MaskedLoss(NamedTuple):
    """Loss of a batch."""

    loss: Tensor
    by_modality: dict[str, Tensor]
    """Mean over the predicted tokens of a modality; 0 where there are none."""
    counts: dict[str, int]
    """Number of predicted tokens."""


@dataclass(frozen=True)
class Packing:
    """Positions of the tokens of several entries in one batch, sample by sample, padded to the longest sample."""

    rows: dict[str, Tensor]
    """Indices of the chosen tokens by entry, sample by sample [K]: sample x N + position, with N tokens per sample."""
    positions: dict[str, Tensor]
    """Indices of the same tokens in the packed batch, by entry [K]: sample x M + position."""
    slots: Tensor
    """Index of each packed token in the concatenated rows of all entries [B, M]."""
    entry: Tensor
    """Index of the entry of each packed token [B, M]; `PADDING` where there is no token."""

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        """Return the packed batch [B, M, dim] of all entries' rows [K, dim]; padding is zero."""
        return torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])[self.slots]

    @property
    def valid(self) -> Tensor | None:
        """Return a boolean tensor [B, M], True where there is a token; None if there is no padding."""
        return None if self.slots.numel() == sum(map(len, self.rows.values())) else self.entry != PADDING

    def to(self, device: torch.device) -> Packing:
        """Return a copy on another device."""
        rows, positions = ({name: x.to(device) for name, x in part.items()} for part in (self.rows, self.positions))
        return Packing(rows, positions, self.slots.to(device), self.entry.to(device))


def pack(masks: Mapping[str, Tensor]) -> Packing:
    """Return the positions of the chosen tokens in a packed batch.

    Args:
        masks: Boolean [B, N] on the CPU by entry, True for chosen tokens.
    """
    joined = torch.cat(list(masks.values()), dim=1)
    rows = {name: mask.flatten().nonzero()[:, 0] for name, mask in masks.items()}
    numbers, total = [], 0
    for name, mask in masks.items():
        numbers.append((mask.flatten().cumsum(dim=0) - 1).view_as(mask) + total)
        total += len(rows[name])
    order = (~joined).to(torch.int8).argsort(dim=1, stable=True)[:, : int(joined.sum(dim=1).max())]
    is_there = joined.gather(1, order)
    slots = torch.where(is_there, torch.cat(numbers, dim=1).gather(1, order), total)
    widths = torch.tensor([mask.shape[1] for mask in masks.values()])
    entry = torch.where(is_there, torch.arange(len(masks)).repeat_interleave(widths)[order], PADDING)
    positions = {name: (entry == number).flatten().nonzero()[:, 0] for number, name in enumerate(masks)}
    return Packing(rows, positions, slots, entry)


def masked_loss(
    model: EncoderDecoder, batch: MaskedBatch, masks: Masks, *, average: Literal["modality", "token"] = "modality"
) -> MaskedLoss:
    """Return the cross-entropy of the tokens to predict after reading the others.

    Tokens of an image modality are predicted at once and attend to each other. A token of a sequence attends to the
    true tokens before it. Tokens of different modalities do not attend to each other.

    Source: 4M (arXiv:2312.06647) section 3.

    Args:
        model: Model with embeddings for all entries to read and heads for all entries to predict.
        batch: All entries in `masks`; all images have the same size.
        masks: From `draw_masks`.
        average: 'modality' for the mean of the modalities' means, as in 4M, where a modality without tokens counts as
            0; 'token' for the mean over all tokens.

    Raises:
        ConfigError: A modality is missing, its size is not that of its mask, or the model has no embedding for it.
    """
    size = _check(model, batch, masks)
    device = model.mask_token.device
    context = _read(model, batch, pack(masks.inputs).to(device), size)
    return _predict(model, batch, pack(masks.targets).to(device), size, context, average)


def _read(model: EncoderDecoder, batch: MaskedBatch, packing: Packing, size: tuple[int, int]) -> Context:
    """Return the context of the tokens to read."""
    contents, positions = [], []
    count = size[0] * size[1]
    for entry, rows in packing.rows.items():
        kind, _, name = entry.partition(".")
        embedding: Any = model.encoder_embeddings[key_of(entry)]
        if kind == "pixels":
            patch = model.patch_size
            patches = rearrange(batch["pixels"][name], "b c (h p) (w q) -> (b h w) (p q c)", p=patch, q=patch)
            contents.append(embedding.proj(patches[rows]))
        elif kind == "tokens":
            contents.append(embedding.token_emb(batch["tokens"][name].flatten()[rows].long()))
        if kind != "sequences":
            positions.append(embedding.embed_positions(size)[0][rows % count])
            continue
        ids = F.pad(batch["sequences"][name], (1, 0), value=START)
        contents.append(embedding.token_emb(ids.flatten()[rows].long()))
        # Only the tokens that are read matter: the start alone, or all but the start.
        positions.append(embedding.embed_positions_at((rows % ids.shape[1] - 1).clamp(min=0)))
    part = Tokens(packing.join(contents), packing.join(positions), packing.valid)
    return model.encode([part], len(packing.slots))


def _predict(
    model: EncoderDecoder,
    batch: MaskedBatch,
    packing: Packing,
    size: tuple[int, int],
    context: Context,
    average: str,
) -> MaskedLoss:
    """Return the loss of the tokens to predict."""
    queries, answers = [], {}
    count = size[0] * size[1]
    for entry, rows in packing.rows.items():
        kind, _, name = entry.partition(".")
        head: Any = model.decoder_embeddings[key_of(entry)]
        if kind == "tokens":
            queries.append(model.mask_token[0] + head.embed_positions(size)[0][rows % count])
            answers[entry] = batch["tokens"][name].flatten()[rows].long()
            continue
        ids = F.pad(batch["sequences"][name], (1, 0), value=START)
        queries.append(head.token_emb(ids.flatten()[rows].long()) + head.embed_positions_at(rows % ids.shape[1]))
        answers[entry] = F.pad(ids[:, 1:], (0, 1), value=STOP).flatten()[rows].long()
    y = run_decoder(
        packing.join(queries),
        model.decoder,
        model.decoder_norm,
        context.memory,
        mask=context.mask,
        self_mask=_attention(packing),
    ).flatten(0, 1)
    sums: dict[str, Tensor] = {}
    for entry, ids in answers.items():
        head = model.decoder_embeddings[key_of(entry)]
        logits = head.to_logits(y[packing.positions[entry]])
        exact = torch.promote_types(logits.dtype, torch.float32)
        # The sum, since the mean over no tokens and its gradient would be NaN.
        sums[entry] = F.cross_entropy(logits.to(exact), ids, reduction="sum")
    counts = {entry: len(ids) for entry, ids in answers.items()}
    means = {entry: value / max(counts[entry], 1) for entry, value in sums.items()}
    if average == "modality":
        loss = torch.stack(list(means.values())).mean()
    else:
        loss = torch.stack(list(sums.values())).sum() / max(sum(counts.values()), 1)
    names = {entry: entry.partition(".")[2] for entry in answers}
    return MaskedLoss(
        loss,
        {name: means[entry].detach() for entry, name in names.items()},
        {name: counts[entry] for entry, name in names.items()},
    )


def _attention(packing: Packing) -> Tensor:
    """Return the attention mask of the tokens to predict, boolean [B, M, M]; padding attends to padding."""
    entry = packing.entry
    is_same = entry[:, :, None] == entry[:, None, :]
    is_sequence = [entry.startswith("sequences.") for entry in packing.rows]
    if not any(is_sequence):
        return is_same
    causal = torch.tensor([*is_sequence, False], device=entry.device)[entry]  # the last for PADDING
    return is_same & (~causal[:, :, None] | torch.ones_like(is_same[0]).tril())


def key_of(entry: str) -> str:
    """Return the checkpoint key of an entry's embedding.

    Args:
        entry: 'pixels.S2L2A', 'tokens.LULC' or 'sequences.coords'.

    Raises:
        ConfigError: The models do not take pixels or tokens of that modality.
    """
    kind, _, name = entry.partition(".")
    modality = resolve(name)
    if kind != "pixels":
        return token_key(modality)
    if modality.patch_key is None:
        raise ConfigError(f"TerraMind takes {modality.name} as tokens, not as pixels. Move it to tokens.")
    return modality.patch_key


def _check(model: EncoderDecoder, batch: MaskedBatch, masks: Masks) -> tuple[int, int]:
    """Check model, batch and masks, and return the numbers of rows and columns of tokens."""
    sizes: dict[str, tuple[int, int]] = {}
    for entry, mask in {**masks.targets, **masks.inputs}.items():
        kind, _, name = entry.partition(".")
        parts: Any = batch
        if name not in parts[kind]:
            raise ConfigError(f"The batch has no {kind} of {name}, only {list(parts[kind])}; the task names it.")
        x = parts[kind][name]
        if kind == "sequences":
            if mask.shape[1] != x.shape[1] + 1:
                raise ConfigError(f"{name} should have {mask.shape[1] - 1} token ids, got {x.shape[1]}.")
            continue
        scale = model.patch_size if kind == "pixels" else 1
        sizes[entry] = (x.shape[-2] // scale, x.shape[-1] // scale)
        if sizes[entry][0] * sizes[entry][1] != mask.shape[1] or x.shape[-2] % scale or x.shape[-1] % scale:
            raise ConfigError(f"{entry} should have {mask.shape[1]} tokens, got {list(x.shape)}.")
    if len(set(sizes.values())) != 1:
        shown = ", ".join(f"{entry} {rows} x {columns}" for entry, (rows, columns) in sizes.items())
        raise ConfigError(f"All modalities must have the same size in tokens, got {shown}.")
    return next(iter(sizes.values()))
