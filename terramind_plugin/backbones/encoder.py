"""The TerraMind encoder as a backbone for fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from terramind_plugin.backbones import fuse
from terramind_plugin.backbones.lora import refuse_adapters, trained_parameters
from terramind_plugin.cache.cache import Memo
from terramind_plugin.cache.features import FeatureMemo
from terramind_plugin.cache.keys import describe_specs
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.embeddings import ImageEmbedding
from terramind_plugin.model.encoder import build_blocks, initialise, run_blocks
from terramind_plugin.model.encoder_decoder import token_key
from terramind_plugin.model.finite import zero_nan
from terramind_plugin.model.inputs import BACKBONE, InputSpec, check_shapes, collect_inputs, plan_inputs
from terramind_plugin.model.layers import LayerNorm
from terramind_plugin.model.token_embeddings import SequenceEmbedding, TokenEmbedding
from terramind_plugin.model.variants import Variant


class LayerList(list[Any]):
    """The selected layers, in order: iterating gives them, indexing takes the layer's number in the encoder.

    So `SelectIndices` with indices [2, 5, 8, 11] means the same layers whether `out_indices` left the others out or
    not. Negative indices count from the last selected layer.

    Args:
        items: One entry for each selected layer.
        layers: Their numbers.
        positions: Whether an index that is no layer's number may be a position. True for channel counts, which are
            equal for all layers and which some necks read by position. Index 0 of a single layer always is one.
    """

    def __init__(self, items: Sequence[Any], layers: Sequence[int], *, positions: bool = False) -> None:
        super().__init__(items)
        self.layers = tuple(layers)
        self.positions = positions

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or index < 0:
            return super().__getitem__(index)
        if index in self.layers:
            return super().__getitem__(self.layers.index(index))
        if self.positions or (index == 0 and len(self) == 1):
            return super().__getitem__(index)
        raise IndexError(f"Layer {index} was not kept. out_indices kept {list(self.layers)}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LayerList, positions=self.positions), (list(self), self.layers)

    def copy(self) -> LayerList:
        """Return a shallow copy that is indexed by layer number, too."""
        return LayerList(self, self.layers, positions=self.positions)


# So that compiled and exported models return the same type as this one.
pytree.register_pytree_node(
    LayerList,
    lambda layers: (list(layers), (layers.layers, layers.positions)),
    lambda items, context: LayerList(list(items), context[0], positions=context[1]),
    serialized_type_name="terramind_plugin.LayerList",
    to_dumpable_context=lambda context: [list(context[0]), context[1]],
    from_dumpable_context=lambda context: (tuple(context[0]), context[1]),
)


class TerraMindBackbone(nn.Module):
    """Tokens of selected encoder layers for images of one or several modalities.

    Source: TerraMind (arXiv:2504.11171); arguments are those of TerraTorch's implementation, plus the ones marked new.

    Args:
        variant: Architecture.
        modalities: Names of the modality table; a mapping {name: channels} adds a modality without pre-trained weights.
        bands: Bands of a modality in the order of the input's channels, e.g. {'S2L2A': ['BLUE', 'GREEN', 'RED']}.
        new_bands: New. Entries of `bands` that the pre-training data did not have; they start from random weights.
        merge_method: How modalities become one feature map: 'mean', 'max', 'concat' (side by side, in the order of
            `modalities`), 'dict' (by name) or 'none' / None (all tokens, one after the other).
        out_indices: New. Layers to return, ascending; None for all.
        img_size: Size in pixels that position embeddings are made for, one number or (height, width); None for that
            of the variant, 224 for the published ones.
        drop_path_rate: Stochastic depth of the last block.
        drop_rate: Dropout of the attention output.
        attn_drop_rate: Dropout of the attention weights.
        modality_drop_rate: Probability with which a sample loses a modality during training; never its last.
        num_register_tokens: Learnt tokens in front of the sequence that no feature map holds.
        activation_checkpointing: New. Recompute activations in the backward pass: less memory, about a third slower.
        feature_memo: New. Folder in which the features of a frozen backbone are remembered, so that none is computed
            twice; True for 'memo' under the run's root.
        feature_memo_dtype: New. Precision of remembered features: 'bfloat16', 'float16' or 'float32'.
        feature_memo_gib: New. Size that the memo may have, in GiB; what was not used for longest is forgotten.
        imagined: New. Modalities that come as token ids, which a subclass makes itself.

    Raises:
        ConfigError: A name or number is not possible; the message says what is.
    """

    _advice = BACKBONE

    def __init__(
        self,
        variant: Variant,
        modalities: Sequence[str | Mapping[str, int]] | Mapping[str, int] | None,
        *,
        bands: Mapping[str, Sequence[object]] | None = None,
        new_bands: Sequence[object] = (),
        merge_method: str | None = "mean",
        out_indices: Sequence[int] | None = None,
        img_size: int | tuple[int, int] | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        modality_drop_rate: float = 0.0,
        num_register_tokens: int = 0,
        activation_checkpointing: bool = False,
        feature_memo: str | Path | bool | None = None,
        feature_memo_dtype: str = "bfloat16",
        feature_memo_gib: float = 20.0,
        imagined: Sequence[InputSpec] = (),
    ) -> None:
        super().__init__()
        self.variant = variant
        self.given = plan_inputs(modalities, bands, new_bands)
        self.inputs = (*self.given, *imagined)
        self.modalities = [spec.name for spec in self.inputs]
        self.merge_method = _check_merge_method(merge_method)
        self.layers = _check_layers(out_indices, variant.depth)
        self.patch_size = variant.patch_size
        self.img_size = _check_size(variant.img_size if img_size is None else img_size, variant.patch_size)
        for name, rate in (
            ("drop_path_rate", drop_path_rate),
            ("drop_rate", drop_rate),
            ("attn_drop_rate", attn_drop_rate),
        ):
            if not 0 <= rate < 1:
                raise ConfigError(f"{name} must be at least 0 and less than 1, got {rate}.")
        if not 0 <= modality_drop_rate <= 1:
            raise ConfigError(f"modality_drop_rate must be between 0 and 1, got {modality_drop_rate}.")
        self.modality_drop_rate = modality_drop_rate
        self.activation_checkpointing = activation_checkpointing
        self.feature_memo = (
            FeatureMemo(Memo(feature_memo, "features", feature_memo_gib), feature_memo_dtype) if feature_memo else None
        )

        dim = variant.dim
        self.encoder_embeddings = nn.ModuleDict(
            {spec.key: _build_embedding(spec, variant, self.img_size) for spec in self.inputs}
        )
        self.encoder = build_blocks(
            dim,
            variant.depth,
            variant.num_heads,
            mlp_ratio=variant.mlp_ratio,
            bias=variant.bias,
            gated=variant.gated,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.encoder_norm = LayerNorm(dim)
        self.num_register_tokens = num_register_tokens
        self.register_tokens = nn.Parameter(torch.zeros(1, num_register_tokens, dim)) if num_register_tokens else None
        if self.merge_method == "concat":
            self.missing_mod_token = nn.Parameter(torch.zeros(dim))
        initialise(self)

        self.places = tuple(spec.name for spec in self.inputs if not spec.is_sequence)
        """Modalities that the feature maps hold; sequences have no place in them."""
        width = dim * len(self.places) if self.merge_method == "concat" else dim
        widths = [width] * len(self.layers)
        self.out_channels = widths if out_indices is None else LayerList(widths, self.layers, positions=True)
        """Channels of each returned layer, as TerraTorch's necks read them."""
        self._selects_layers = out_indices is not None
        self.trained: frozenset[str] | None = None
        """Names of the parameters that train where the backbone has adapters; None for all."""
        self.register_load_state_dict_pre_hook(refuse_adapters)

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor] | None = None,
        modality_mask: Mapping[str, Tensor] | None = None,
        image_size: object = None,
        **named: Tensor,
    ) -> list[Any]:
        """Return the features of the selected layers.

        Args:
            x: Images [B, bands, H, W] by modality, standardised, in any order; or the image of the first modality.
                Modalities of the model that are not given are missing for the whole batch.
            modality_mask: For some modalities a boolean [B]; False where a sample lacks that modality. While a mask is
                given, a sample whose pixels are all NaN lacks the modality, too, and single NaN pixels count as the
                mean. The NaN mark survives tiling into batches that mix samples; the mask does so only if the tiles of
                a batch are a multiple of the samples.
            image_size: Ignored; TerraTorch passes it to every backbone.
            named: Images by modality, as keywords.

        Returns:
            For each layer a tensor [B, N, D]; [B, N, modalities * D] with 'concat'; a dict of [B, N, D] by modality
            with 'dict'; [B, all tokens, D] with 'none'.

        Raises:
            ConfigError: An input is unknown or has a wrong shape, or a mask does not fit the batch.
        """
        inputs = collect_inputs(self.given, x, named)
        check_shapes(self.given, inputs, self.patch_size, same_size=self._needs_one_size(), advice=self._advice)
        present = None
        if modality_mask:
            present = self._measured(inputs, modality_mask)
            inputs = {name: zero_nan(image) for name, image in inputs.items()}
        if self.feature_memo is None:
            return self._select(self._compute(inputs, present))
        return self._select(self.feature_memo.recall(self, inputs, present, self._compute, settings=self._describe()))

    def _needs_one_size(self) -> bool:
        """Whether all images must have one size."""
        return self.merge_method in ("mean", "max", "concat")

    def _compute(self, inputs: Mapping[str, Tensor], present: Tensor | None) -> list[Any]:
        """Return the merged features of the selected layers.

        Args:
            inputs: Images by modality.
            present: Boolean [modalities, B]; None if all have all.
        """
        return self._encode(inputs, self._drop(inputs, present))

    def _select(self, features: list[Any]) -> list[Any]:
        return LayerList(features, self.layers) if self._selects_layers else features

    def _describe(self) -> dict[str, Any]:
        """Return what features depend on besides weights and inputs."""
        return {
            "inputs": describe_specs(self.inputs),
            "layers": self.layers,
            "merge": self.merge_method,
            "registers": self.num_register_tokens,
        }

    def _measured(self, inputs: Mapping[str, Tensor], modality_mask: Mapping[str, Tensor]) -> Tensor:
        """Return a boolean [modalities, B], True where a sample has one of the given modalities."""
        masks = collect_inputs(self.given, modality_mask, {})
        marked = {name: image.isnan().flatten(1).all(dim=1) for name, image in inputs.items()}
        return torch.stack([~marks & _fit_mask(name, masks.get(name), marks) for name, marks in marked.items()])

    def _drop(self, inputs: Mapping[str, Tensor], present: Tensor | None) -> dict[str, Tensor] | None:
        """Return for each given modality a boolean [B], True where it is used; None if all are by all samples.

        Args:
            inputs: What is given.
            present: Boolean [modalities, B], True where a sample has it; None if all have all.
        """
        dropping = self.training and self.modality_drop_rate > 0 and len(inputs) > 1
        if present is None and not dropping:
            return None
        first = next(iter(inputs.values()))
        if present is None:
            present = torch.ones(len(inputs), first.shape[0], dtype=torch.bool, device=first.device)
        if dropping:
            keep = torch.rand(present.shape, device=first.device) >= self.modality_drop_rate
            # The real modality with the highest draw survives, so that no sample ends up with none.
            draw = torch.rand(present.shape, device=first.device).masked_fill(~present, -1.0)
            keep |= torch.zeros_like(keep).scatter(0, draw.argmax(dim=0, keepdim=True), True)
            present = present & keep
        # A sample without any modality attends to what it was given: an empty softmax is NaN.
        present = present | ~present.any(dim=0)
        return dict(zip(inputs, present.unbind(0), strict=True))

    def _encode(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[Any]:
        """Return the merged features of the selected layers.

        Args:
            inputs: Images, and token ids of what is imagined, by modality and in the model's order.
            present: From `_drop`.
        """
        tokens: dict[str, Tensor] = {}
        gaps: dict[str, Tensor] = {}
        for spec in self.inputs:
            if spec.name in inputs:
                tokens[spec.name] = self.encoder_embeddings[spec.key](inputs[spec.name])
                if spec.is_sequence:
                    gaps[spec.name] = inputs[spec.name] != 0
        lengths = [t.shape[1] for t in tokens.values()]
        sequence = torch.cat(list(tokens.values()), dim=1) if len(tokens) > 1 else next(iter(tokens.values()))
        mask = self._token_mask(present, tokens, gaps)
        if self.register_tokens is not None:
            sequence = torch.cat([self.register_tokens.expand(len(sequence), -1, -1).to(sequence.dtype), sequence], 1)
        features = run_blocks(
            sequence,
            self.encoder,
            self.encoder_norm,
            mask=mask,
            keep=self.layers,
            recompute=self.activation_checkpointing and self.training,
        )
        return [self._merge(layer, list(tokens), lengths, present) for layer in features]

    def _token_mask(
        self, present: Mapping[str, Tensor] | None, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor]
    ) -> Tensor | None:
        """Return a boolean [B, N], True where a token may be attended to; None if all may.

        Args:
            present: From `_drop`.
            tokens: Tokens [B, N, D] by modality.
            valid: For sequences a boolean [B, N], True where there is a token.
        """
        if present is None and not valid:
            return None
        parts = []
        for name, x in tokens.items():
            part = valid.get(name, x.new_ones(x.shape[:2], dtype=torch.bool))
            parts.append(part if present is None else part & present[name][:, None])
        if self.num_register_tokens:
            parts.insert(0, torch.ones_like(parts[0][:, :1]).expand(-1, self.num_register_tokens))
        return torch.cat(parts, dim=1)

    def _merge(
        self, layer: Tensor, names: Sequence[str], lengths: Sequence[int], present: Mapping[str, Tensor] | None
    ) -> Any:
        """Return one layer's tokens [B, N, D], merged as configured."""
        if self.merge_method == "none" and present is None:
            return layer
        registers = self.num_register_tokens
        parts = list(layer.split([registers, *lengths] if registers else list(lengths), dim=1))
        register_part = {"register_tokens": parts.pop(0)} if registers else {}
        tokens = dict(zip(names, parts, strict=True))
        if self.merge_method in ("mean", "max", "concat"):
            maps = {name: tokens[name] for name in self.places if name in tokens}
            if self.merge_method == "mean":
                return fuse.merge_mean(maps, present)
            if self.merge_method == "max":
                return fuse.merge_max(maps, present)
            return fuse.merge_concat(maps, present, self.places, self.missing_mod_token)
        by_name = {**register_part, **fuse.blank(tokens, present)}
        return by_name if self.merge_method == "dict" else torch.cat(list(by_name.values()), dim=1)

    def freeze(self) -> None:
        """Stop all parameters from training and switch dropout off; `train()` keeps it so until `unfreeze()`.

        With adapters these go on: they are there to train beside a frozen backbone.
        """
        if trained_parameters(self) is not None:
            self.unfreeze()
            return
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Let all parameters train again, or with adapters those that belong to them, and switch to training mode."""
        trained = trained_parameters(self)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(trained is None or name in trained)
        self.train()

    def train(self, mode: bool = True) -> TerraMindBackbone:
        """Set training mode; a backbone without trainable parameters stays in evaluation mode."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self


def _build_embedding(spec: InputSpec, variant: Variant, img_size: tuple[int, int]) -> nn.Module:
    if not spec.is_tokens:
        return ImageEmbedding(spec.channels, variant.dim, variant.patch_size, img_size, variant.waves)
    assert spec.pretrained is not None
    _, vocab_size = token_key(spec.pretrained, variant)
    if spec.pretrained.max_length is not None:
        return SequenceEmbedding(vocab_size, variant.dim, spec.pretrained.max_length)
    return TokenEmbedding(vocab_size, variant.dim, variant.patch_size, img_size, variant.waves)


def _fit_mask(name: str, mask: Tensor | None, marked: Tensor) -> Tensor:
    """Return a modality's mask for the batch at hand.

    Args:
        name: The modality.
        mask: Boolean [samples], False where the modality is missing; None if it never is.
        marked: Boolean [B], True where the image is marked as missing by NaN.

    Raises:
        ConfigError: The mask does not fit the batch, and the images are not marked either.
    """
    if mask is None:
        return torch.ones_like(marked)
    mask = torch.as_tensor(mask, device=marked.device).bool().flatten()
    batch, samples = len(marked), len(mask)
    if batch == samples:
        return mask
    if samples and batch % samples == 0:
        # Tiled inference: TerraTorch interleaves the tiles of the batch's samples.
        return mask.repeat(batch // samples)
    # Tiles of a part of the samples, we cannot know which. The NaN marks say it, if they are there.
    fewest = int((~mask).sum()) - max(0, samples - batch)
    if int(marked.sum()) < fewest:
        raise ConfigError(
            f"modality_mask of {name} has {samples} values for a batch of {batch}. Give one value for each sample; in "
            f"tiled inference fill the missing images with NaN, or choose a batch_size that is a multiple of {samples}."
        )
    return torch.ones_like(marked)


def _check_merge_method(method: str | None) -> str:
    name = "none" if method is None else str(method).lower()
    if name not in fuse.MERGE_METHODS:
        raise ConfigError(
            f"Unknown merge_method '{method}'. Choose one of {', '.join(fuse.MERGE_METHODS)}."
            f"{suggest(str(method), fuse.MERGE_METHODS)}"
        )
    return name


def _check_layers(out_indices: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if out_indices is None:
        return tuple(range(depth))
    layers = tuple(index + depth if index < 0 else index for index in out_indices)
    if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or layers[-1] >= depth:
        raise ConfigError(
            f"out_indices must be different layers in ascending order, 0 to {depth - 1}, got {list(out_indices)}."
        )
    return layers


def _check_size(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ConfigError(f"img_size must be a multiple of {patch_size} in height and width, got {img_size}.")
    return height, width
