"""The TerraMind encoder as a backbone for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.backbones import fuse
from terramind_plugin.backbones.cache.cache import Cache
from terramind_plugin.backbones.cache.keys import describe_specs
from terramind_plugin.backbones.layer_list import LayerList
from terramind_plugin.backbones.lora import refuse_adapters, trained_parameters
from terramind_plugin.backbones.presence import choose_used, find_present, mask_tokens, touch
from terramind_plugin.backbones.tokenized import InputTokens
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.compiled import compile_method, is_distributed
from terramind_plugin.model.embeddings import PAD_ID, build_embedding
from terramind_plugin.model.encoder import build_blocks, initialise, run_blocks
from terramind_plugin.model.finite import zero_nan
from terramind_plugin.model.inputs import (
    BACKBONE,
    InputSpec,
    Modalities,
    check_shapes,
    check_size,
    collect_inputs,
)
from terramind_plugin.model.layers import LayerNorm
from terramind_plugin.model.planning import plan_inputs
from terramind_plugin.model.variants import Variant
from terramind_plugin.tokenizers.coordinates import CoordsTokenizer

REGISTERS = "register_tokens"
"""Name of the register tokens among the features of merge_method 'dict'."""
TOKENIZER = "tokenizer."
"""Prefix of the names of the weights of frozen tokenizers, as in TerraTorch's checkpoints."""


class TerraMindBackbone(nn.Module):
    """Backbone that returns the tokens of selected encoder layers for images of one or several modalities.

    Frozen tokenizers turn images of LULC and NDVI, and positions, into token ids, as in TerraTorch. LULC and NDVI may
    also be given as token ids.

    Source: TerraMind (arXiv:2504.11171); arguments are those of TerraTorch's implementation, plus the ones marked new.

    Args:
        variant: Architecture.
        modalities: Names from the modality table, or longer names that contain one, such as S2L2A_before. New: a
            mapping {name: modality} adds an input that starts from the weights of a modality. A mapping
            {name: channels} adds an input without pre-trained weights.
        bands: Bands of a modality in the order of the input's channels, e.g. {'S2L2A': ['BLUE', 'GREEN', 'RED']}.
        new_bands: New. Entries of `bands` that the pre-training data did not have; they start from random weights.
        merge_method: How the tokens of the modalities are merged: 'mean', 'max', 'concat' (along the features, in the
            order of `modalities`), 'dict' (separate, by name) or 'none' / None (all tokens, one after the other).
        out_indices: New. Layers to return, ascending; None for all.
        img_size: Size of the images in pixels for the position embeddings, one number or (height, width); None for the
            variant's size, which is 224 for the published models.
        drop_path_rate: Rate of stochastic depth of the last block.
        drop_rate: Dropout rate of the attention output.
        attn_drop_rate: Dropout rate of the attention weights.
        modality_drop_rate: Probability of dropping a modality of a sample in training; its last one is never dropped.
        num_register_tokens: Number of learnt tokens in front of the sequence, which are not part of feature maps.
        activation_checkpointing: New. Recompute activations in the backward pass: less memory, about a third slower.
        share_embeddings: New. Whether inputs given as {name: modality} share the embedding of the modality instead of
            having their own. Names such as S2L2A_before and S2L2A_after always share it, as in TerraTorch.
        in_chans: Number of channels of an input 'image' without pre-trained weights, for empty `modalities`.
        coords: New. Function that returns the tokenizer of coordinates, needed if they are an input.
        generated: New. Modalities whose token ids a subclass generates.

    Raises:
        ConfigError: A name or number is not possible; the message says which ones are.
    """

    def __init__(
        self,
        variant: Variant,
        modalities: Modalities,
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
        share_embeddings: bool = False,
        in_chans: int | None = None,
        coords: Callable[[], CoordsTokenizer] | None = None,
        generated: Sequence[InputSpec] = (),
    ) -> None:
        super().__init__()
        self.variant = variant
        self.observed = plan_inputs(
            modalities, bands, new_bands, tokens=True, share_embeddings=share_embeddings, in_chans=in_chans
        )
        """Names of the modalities that `forward` accepts."""
        self.inputs = (*self.observed, *generated)
        """Inputs of the encoder."""
        self.modalities = [spec.name for spec in self.inputs]
        self.merge_method = _check_merge_method(merge_method)
        self.layers = _check_layers(out_indices, variant.depth)
        self.patch_size = variant.patch_size
        self.img_size = check_size(variant.img_size if img_size is None else img_size, self.patch_size, "img_size")
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate, "drop_path_rate": drop_path_rate}
        _check_rates(modality_drop_rate, **rates)
        self.modality_drop_rate = modality_drop_rate
        self.activation_checkpointing = activation_checkpointing

        dim = variant.dim
        embeddings = {key: build_embedding(spec, variant, self.img_size) for key, spec in by_key(self.inputs).items()}
        self.encoder_embeddings = nn.ModuleDict(embeddings)
        self.encoder = build_blocks(variant, **rates)
        self.encoder_norm = LayerNorm(dim)
        self.num_register_tokens = num_register_tokens
        self.register_tokens = nn.Parameter(torch.zeros(1, num_register_tokens, dim)) if num_register_tokens else None
        if self.merge_method == "concat":
            self.missing_mod_token = nn.Parameter(torch.zeros(dim))
        initialise(self)

        tokenized = [spec for spec in self.observed if spec.is_tokens]
        self.tokenizer = InputTokens(tokenized, variant.family, coords) if tokenized else None
        """Frozen tokenizers of inputs; None if all inputs are pixels."""
        self._describe_features(out_indices)
        self.trained: frozenset[str] | None = None
        """Names of the trained parameters of a backbone with adapters; None if all parameters train."""
        refuse_adapters(self)
        self.feature_cache: Cache | None = None
        """Cache around `compute`, for its log; None if there is none."""
        self._one_size, self._advice = self.merge_method in ("mean", "max", "concat"), BACKBONE

    def _is_behind(self, name: str) -> bool:
        """Return whether a weight lies behind the last returned layer: it gets no gradient, so plain DDP would stop."""
        last = self.layers[-1]
        if name.startswith("encoder_norm."):
            return last < self.variant.depth - 1
        part, _, rest = name.partition(".")
        return part == "encoder" and int(rest.partition(".")[0]) > last

    def _describe_features(self, out_indices: Sequence[int] | None) -> None:
        """Set the modalities and channels of the feature maps, which necks read, and the trained parameters."""
        self.mapped = tuple(spec.name for spec in self.inputs if not spec.is_sequence)
        """Modalities in the feature maps: all but sequences."""
        if not self.mapped:
            raise ConfigError(f"{self.modalities} has no image: add one to coords, e.g. modalities: [S2L2A, coords].")
        width = self.variant.dim * (len(self.mapped) if self.merge_method == "concat" else 1)
        widths = [width] * len(self.layers)
        self.out_channels = widths if out_indices is None else LayerList(widths, self.layers, positions=True)
        """Channels of each returned layer."""
        self._selects_layers = out_indices is not None
        for name, parameter in self.named_parameters():
            if self._is_behind(name):
                parameter.requires_grad_(False)

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor] | None = None,
        modality_mask: Mapping[str, Tensor] | None = None,
        image_size: object = None,
        **named: Tensor,
    ) -> list[Any]:
        """Return the features of the selected layers.

        Args:
            x: Standardised images [B, bands, H, W] by modality, in any order; or the image of the first modality. LULC
                has class ids [B, 1, H, W] or [B, H, W]; LULC and NDVI may be token ids [B, rows, columns]; coords are
                positions [B, 2] as (longitude, latitude) in degrees, or [B, 2, H, W], of which the middle is used. If
                a modality of the model is not given, the whole batch lacks it.
            modality_mask: Boolean [B] for some modalities, False where a sample lacks the modality. If a mask is given,
                a sample whose pixels are all NaN also lacks the modality, and single NaN pixels count as the mean. NaN
                images still mark missing modalities after tiling into batches that mix samples; a mask does so only if
                the number of tiles in a batch is a multiple of the number of samples.
            image_size: Ignored; TerraTorch passes it to every backbone.
            named: Images by modality, as keyword arguments.

        Returns:
            The features of each layer: [B, N, D]; [B, N, modalities * D] with 'concat'; a dict of [B, N, D] by modality
            with 'dict'; [B, all tokens, D] with 'none'.

        Raises:
            ConfigError: An input is unknown or has a wrong shape, there is no image, or a mask does not fit the batch.
            DataError: A class id, token id or position is not possible.
        """
        inputs = collect_inputs(self.observed, x, named)
        check_shapes(self.observed, inputs, self.patch_size, same_size=self._one_size, advice=self._advice)
        if not any(name in self.mapped for name in inputs):
            raise ConfigError(f"The model got {list(inputs)} and no image. It accepts {self.modalities}.")
        present = None
        if modality_mask:
            present = find_present(inputs, collect_inputs(self.observed, modality_mask, {}))
            if len(self.mapped) < len(self.inputs):
                # A sample without an image uses all inputs, because positions alone give no feature map.
                empty = ~torch.stack([there for name, there in present.items() if name in self.mapped]).any(dim=0)
                present = {name: there | empty for name, there in present.items()}
            inputs = {name: zero_nan(image) for name, image in inputs.items()}
        features = self.compute(inputs, present)
        return LayerList(features, self.layers) if self._selects_layers else features

    def compute(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[Any]:
        """Return the merged features of the selected layers.

        Args:
            inputs: Tensors as in `forward`, by modality and in the model's order.
            present: Boolean [B] for each input, False where a sample lacks it; None if all samples have all inputs.
        """
        return self.encode({**inputs, **self.tokenize(inputs)}, present)

    def tokenize(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the token ids of the inputs that enter the encoder as token ids; arguments as in `compute`."""
        if self.tokenizer is None:
            return {}
        ids: dict[str, Tensor] = self.tokenizer(inputs, self.patch_size, wait=not self.training)
        return ids

    def encode(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[Any]:
        """Return the merged features of the selected layers.

        Args:
            inputs: Images, and token ids of other modalities, by modality and in the model's order.
            present: As in `compute`.
        """
        kept = self.mapped if self.merge_method in ("mean", "max", "concat") else None
        used = choose_used(inputs, present, self.modality_drop_rate if self.training else 0.0, kept)
        tokens: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for spec in self.inputs:
            if spec.name in inputs:
                tokens[spec.name] = self.encoder_embeddings[spec.key](inputs[spec.name])
                if spec.is_sequence:
                    valid[spec.name] = inputs[spec.name] != PAD_ID
        if self.training and is_distributed():
            name, first = next(iter(tokens.items()))
            tokens[name] = touch(first, self._unused(inputs))
        if self.register_tokens is not None:
            first = next(iter(tokens.values()))
            tokens = {REGISTERS: self.register_tokens.expand(len(first), -1, -1).to(first.dtype), **tokens}
        layers = run_blocks(
            torch.cat(list(tokens.values()), dim=1),
            self.encoder,
            self.encoder_norm,
            mask=mask_tokens(tokens, valid, used),
            keep=self.layers,
            recompute=self.activation_checkpointing and self.training,
        )
        lengths = {name: x.shape[1] for name, x in tokens.items()}
        return [self._merge(layer, lengths, used) for layer in layers]

    def _unused(self, inputs: Mapping[str, Tensor]) -> list[nn.Parameter]:
        """Return the trainable weights that a batch with these inputs may not use."""
        used = {spec.key for spec in self.inputs if spec.name in inputs}
        left = [part for key, part in self.encoder_embeddings.items() if key not in used]
        parameters = [parameter for part in left for parameter in part.parameters()]
        if self.merge_method == "concat":
            parameters.append(self.missing_mod_token)
        return [parameter for parameter in parameters if parameter.requires_grad]

    def _merge(self, layer: Tensor, lengths: Mapping[str, int], used: Mapping[str, Tensor] | None) -> Any:
        """Return one layer's tokens [B, N, D], merged as configured."""
        if self.merge_method == "none" and used is None:
            return layer
        tokens = dict(zip(lengths, torch.split(layer, list(lengths.values()), dim=1), strict=True))
        if self.merge_method == "dict":
            return fuse.blank(tokens, used)
        if self.merge_method == "none":
            return torch.cat(list(fuse.blank(tokens, used).values()), dim=1)
        maps = {name: tokens[name] for name in self.mapped if name in tokens}
        if self.merge_method == "mean":
            return fuse.merge_mean(maps, used)
        if self.merge_method == "max":
            return fuse.merge_max(maps, used)
        return fuse.merge_concat(maps, used, self.mapped, self.missing_mod_token)

    def describe(self) -> dict[str, Any]:
        """Return everything that features depend on, apart from weights and inputs, for the keys of a cache."""
        return {
            "inputs": describe_specs(self.inputs),
            "layers": self.layers,
            "merge": self.merge_method,
            "registers": self.num_register_tokens,
        }

    @property
    def makes_tokens(self) -> bool:
        """Return whether `compute` makes token ids, which cannot be part of a compiled graph."""
        return self.tokenizer is not None

    def compile_parts(self, mode: str = "graphs", *, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the encoder, with embeddings and merging; arguments as in `compile_model`."""
        compile_method(self, "encode", mode, backend=backend)

    def freeze(self) -> None:
        """Freeze all parameters and turn off dropout until `unfreeze` is called; adapters still train."""
        if trained_parameters(self) is not None:
            self.unfreeze()
            return
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Train all parameters again (with adapters, only the adapters), and switch to training mode."""
        trained = trained_parameters(self)
        for name, parameter in self.named_parameters():
            trains = (trained is None or name in trained) and not name.startswith(TOKENIZER)
            parameter.requires_grad_(trains and not self._is_behind(name))
        self.train()

    def train(self, mode: bool = True) -> TerraMindBackbone:
        """Set the training mode; a backbone without trainable parameters stays in evaluation mode."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self


def by_key(specs: Sequence[InputSpec]) -> dict[str, InputSpec]:
    """Return the first input that uses each embedding, by the embedding's key."""
    found: dict[str, InputSpec] = {}
    for spec in specs:
        found.setdefault(spec.key, spec)
    return found


def find_backbone(model: nn.Module) -> TerraMindBackbone | None:
    """Return the backbone of this package inside a model or task; None if there is none."""
    return next((module for module in model.modules() if isinstance(module, TerraMindBackbone)), None)


def _check_rates(modality_drop_rate: float, **rates: float) -> None:
    if not 0 <= modality_drop_rate <= 1:
        raise ConfigError(f"modality_drop_rate must be between 0 and 1, got {modality_drop_rate}.")
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f"{name} must be at least 0 and less than 1, got {rate}.")


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
