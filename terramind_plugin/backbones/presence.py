"""Presence of modalities in the samples of a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError


def find_present(images: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a boolean [B] for each image, True where a sample has the modality.

    Args:
        images: Images [B, bands, H, W] by modality; a sample whose pixels are all NaN lacks the modality.
        masks: Boolean [samples] by modality, False where the modality is missing.

    Raises:
        ConfigError: A mask does not fit the batch, and missing images are not marked by NaN.
    """
    marked = {name: image.isnan().flatten(1).all(dim=1) for name, image in images.items()}
    return {name: ~marks & _fit_mask(name, masks.get(name), marks) for name, marks in marked.items()}


def _fit_mask(name: str, mask: Tensor | None, marked: Tensor) -> Tensor:
    """Return a modality's mask [samples] expanded to the batch, given the images [B] that NaN marks as missing."""
    if mask is None:
        return torch.ones_like(marked)
    mask = torch.as_tensor(mask, device=marked.device).bool().flatten()
    batch, samples = len(marked), len(mask)
    if batch == samples:
        return mask
    if samples and batch % samples == 0:
        # Tiled inference: TerraTorch interleaves the tiles of the batch's samples.
        return mask.repeat(batch // samples)
    # The batch has tiles of unknown samples: NaN marks the missing ones, if the images are marked.
    fewest = int((~mask).sum()) - max(0, samples - batch)
    if int(marked.sum()) < fewest:
        raise ConfigError(
            f"modality_mask of {name} has {samples} values for a batch of {batch}. Give one value for each sample; in "
            f"tiled inference fill the missing images with NaN, or choose a batch_size that is a multiple of {samples}."
        )
    return torch.ones_like(marked)


def choose_used(
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None,
    drop_rate: float,
    kept: Collection[str] | None = None,
) -> dict[str, Tensor] | None:
    """Return a boolean [B] for each input, True where the encoder uses it; None if it uses all inputs.

    Args:
        inputs: Tensors [B, ...] by modality.
        present: Boolean [B] for each input, True where a sample has it; None if all samples have all inputs.
        drop_rate: Probability of dropping a modality of a sample; its last one is never dropped.
        kept: Modalities of which each sample keeps at least one; None for any.
    """
    dropping = drop_rate > 0 and len(inputs) > 1
    if present is None and not dropping:
        return None
    first = next(iter(inputs.values()))
    if present is None:
        used = torch.ones(len(inputs), first.shape[0], dtype=torch.bool, device=first.device)
    else:
        used = torch.stack([present[name] for name in inputs])
    # A tensor made from a list would be copied to the GPU, which blocks.
    unneeded = [index for index, name in enumerate(inputs) if kept is not None and name not in kept]
    needed = torch.ones(len(inputs), 1, dtype=torch.bool, device=first.device)
    for index in unneeded:
        needed[index] = False
    if dropping:
        keep = torch.rand(used.shape, device=first.device) >= drop_rate
        # The present modality with the highest draw is kept, so that each sample keeps one.
        draw = torch.rand(used.shape, device=first.device).masked_fill(~(used & needed), -1.0)
        keep |= torch.zeros_like(keep).scatter(0, draw.argmax(dim=0, keepdim=True), True)
        used = used & keep
    # A sample without any modality attends to all inputs, because an empty softmax is NaN.
    used = used | ~(used & needed).any(dim=0)
    return dict(zip(inputs, used.unbind(0), strict=True))


def mask_tokens(
    tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], used: Mapping[str, Tensor] | None
) -> Tensor | None:
    """Return a boolean [B, N], True where a token may be attended to; None if all tokens may.

    Args:
        tokens: Tokens [B, n, D] by modality, and registers.
        valid: Boolean [B, n] for each sequence, True where there is a token.
        used: Result of `choose_used`; registers are always used.
    """
    if used is None and not valid:
        return None
    parts = []
    for name, x in tokens.items():
        part = valid.get(name, x.new_ones(x.shape[:2], dtype=torch.bool))
        parts.append(part & used[name][:, None] if used is not None and name in used else part)
    return torch.cat(parts, dim=1)


def touch(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return x with a dependency on parameters that it does not use, so that their gradient is 0 instead of missing.

    DistributedDataParallel stops with an error if a trainable parameter gets no gradient.

    Args:
        x: Tensor of any shape.
        parameters: Tensors of any shape.
    """
    for parameter in parameters:
        x = x + 0 * parameter.flatten()[0].to(x.dtype)
    return x
