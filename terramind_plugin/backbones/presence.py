"""Presence of modalities in the samples of a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError


def find_present(images: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for each image a boolean [B], True where a sample has the modality.

    Args:
        images: [B, bands, H, W] by modality; a sample whose pixels are all NaN lacks the modality.
        masks: Boolean [samples] by modality, False where it is missing.

    Raises:
        ConfigError: A mask does not fit the batch, and the images are not marked by NaN either.
    """
    marked = {name: image.isnan().flatten(1).all(dim=1) for name, image in images.items()}
    return {name: ~marks & _fit_mask(name, masks.get(name), marks) for name, marks in marked.items()}


def _fit_mask(name: str, mask: Tensor | None, marked: Tensor) -> Tensor:
    """Return a modality's mask [samples] for the batch at hand, given which images [B] are marked as missing."""
    if mask is None:
        return torch.ones_like(marked)
    mask = torch.as_tensor(mask, device=marked.device).bool().flatten()
    batch, samples = len(marked), len(mask)
    if batch == samples:
        return mask
    if samples and batch % samples == 0:
        # Tiled inference: TerraTorch interleaves the tiles of the batch's samples.
        return mask.repeat(batch // samples)
    # Tiles of an unknown part of the samples: the NaN marks say which are missing, if they are there.
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
    """Return for each input a boolean [B], True where the encoder uses it; None if it uses all of them.

    Args:
        inputs: Tensors [B, ...] by modality.
        present: For each input a boolean [B], True where a sample has it; None if all samples have all.
        drop_rate: Probability with which a sample loses a modality; never its last.
        kept: Modalities of which each sample keeps one; None for any.
    """
    dropping = drop_rate > 0 and len(inputs) > 1
    if present is None and not dropping:
        return None
    first = next(iter(inputs.values()))
    if present is None:
        used = torch.ones(len(inputs), first.shape[0], dtype=torch.bool, device=first.device)
    else:
        used = torch.stack([present[name] for name in inputs])
    # A tensor made from a list would have to be copied to a GPU, which waits.
    unneeded = [index for index, name in enumerate(inputs) if kept is not None and name not in kept]
    needed = torch.ones(len(inputs), 1, dtype=torch.bool, device=first.device)
    for index in unneeded:
        needed[index] = False
    if dropping:
        keep = torch.rand(used.shape, device=first.device) >= drop_rate
        # The present modality with the highest draw survives, so that no sample ends up with none.
        draw = torch.rand(used.shape, device=first.device).masked_fill(~(used & needed), -1.0)
        keep |= torch.zeros_like(keep).scatter(0, draw.argmax(dim=0, keepdim=True), True)
        used = used & keep
    # A sample without any modality attends to all of its inputs: an empty softmax is NaN.
    used = used | ~(used & needed).any(dim=0)
    return dict(zip(inputs, used.unbind(0), strict=True))


def mask_tokens(
    tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], used: Mapping[str, Tensor] | None
) -> Tensor | None:
    """Return a boolean [B, N], True where a token may be attended to; None if all may.

    Args:
        tokens: Tokens [B, n, D] by modality, and registers.
        valid: For sequences a boolean [B, n], True where there is a token.
        used: From `choose_used`; registers are always used.
    """
    if used is None and not valid:
        return None
    parts = []
    for name, x in tokens.items():
        part = valid.get(name, x.new_ones(x.shape[:2], dtype=torch.bool))
        parts.append(part & used[name][:, None] if used is not None and name in used else part)
    return torch.cat(parts, dim=1)


def touch(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return x, connected to parameters that it does not depend on: their gradient is then 0 and not missing.

    DistributedDataParallel stops with an error where a trainable parameter gets no gradient.

    Args:
        x: Of any shape.
        parameters: Of any shape.
    """
    for parameter in parameters:
        x = x + 0 * parameter.flatten()[0].to(x.dtype)
    return x
