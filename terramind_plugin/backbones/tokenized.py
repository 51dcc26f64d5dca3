"""Modalities that enter a backbone as token ids, which frozen tokenizers make from images and positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, DataError, suggest
from terramind_plugin.model.compiled import keep_out
from terramind_plugin.model.inputs import InputSpec, is_token_ids
from terramind_plugin.model.modalities import Modality, resolve, token_key
from terramind_plugin.tokenizers.coordinates import CoordsIds, CoordsTokenizer
from terramind_plugin.tokenizers.image import ImageTokenizer, drop_unbuilt
from terramind_plugin.tokenizers.variants import tokenizers_of


class FrozenTokenizers(nn.Module):
    """Encoders of frozen tokenizers, always in evaluation mode.

    Args:
        specs: Modalities that enter as token ids; modalities with the same tokenizer share it.
        family: Models that the tokenizers belong to.
        coords: Function that returns the tokenizer of coordinates; needed if they are among `specs`.

    Raises:
        ConfigError: There is no tokenizer of coordinates.
    """

    def __init__(
        self, specs: Sequence[InputSpec], family: str, coords: Callable[[], CoordsTokenizer] | None = None
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        variants = tokenizers_of(family)
        for spec in self.specs:
            assert spec.pretrained is not None
            key = token_key(spec.pretrained)
            if key in self._modules:
                continue
            if not spec.is_sequence:
                self.add_module(key, ImageTokenizer(variants[spec.pretrained.name], decoder=False))
            elif coords is not None:
                self.add_module(key, CoordsIds(coords()))
            else:
                raise ConfigError(f"{spec.name} needs a tokenizer of coordinates: build the model by its builder.")
        self.requires_grad_(False)
        self.train(False)
        keep_out(FrozenTokenizers, "tokenize")  # it branches on values, which a graph cannot
        self.register_load_state_dict_pre_hook(_drop_decoders)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> FrozenTokenizers:
        """Return itself, in evaluation mode."""
        return super().train(False)

    def tokenizers(self) -> dict[str, ImageTokenizer]:
        """Return the image tokenizers by checkpoint key."""
        return {name: module for name, module in self.named_children() if isinstance(module, ImageTokenizer)}

    @torch.no_grad()
    def tokenize(self, spec: InputSpec, x: Tensor, *, wait: bool) -> Tensor:
        """Return the token ids of a modality, computed in full precision: [B, rows, columns], or [B, N] of positions.

        Args:
            spec: One of the modalities.
            x: Standardised images [B, bands, H, W], class ids [B, 1, H, W] or [B, H, W], or positions [B, 2].
            wait: Whether the check that images are finite may wait for a GPU.

        Raises:
            DataError: A value is not a class id, NaN or infinite, or a position is out of range.
        """
        assert spec.pretrained is not None
        tokenizer: Any = self.get_submodule(token_key(spec.pretrained))
        if isinstance(tokenizer, ImageTokenizer):
            tokenizer.quantize.may_wait = wait
        with torch.autocast(x.device.type, enabled=False):
            ids: Tensor = tokenizer.tokenize(x)
        return ids


class InputTokens(FrozenTokenizers):
    """Tokenizers of a backbone's inputs that enter it as token ids; names in checkpoints are TerraTorch's."""

    def forward(self, inputs: Mapping[str, Tensor], patch_size: int, *, wait: bool = True) -> dict[str, Tensor]:
        """Return the token ids of the given inputs by name, [B, rows, columns] or [B, N].

        Args:
            inputs: Tensors as `check_shapes` allows; token ids are returned unchanged.
            patch_size: Patch size of the model in pixels.
            wait: As in `tokenize`.

        Raises:
            DataError: As in `tokenize`, or a token id is not in the vocabulary.
        """
        ids = {}
        for spec in self.specs:
            x = inputs.get(spec.name)
            if x is None:
                continue
            if spec.is_sequence and x.ndim == 4:  # the position of a tile is that of its middle
                x = x[:, :, x.shape[2] // 2, x.shape[3] // 2]
            if spec.is_sequence or not is_token_ids(spec, inputs, patch_size):
                try:
                    ids[spec.name] = self.tokenize(spec, x, wait=wait)
                except DataError as error:
                    raise DataError(f"{spec.name}: {error}") from None
            else:
                ids[spec.name] = self._check_ids(spec, x)
        return ids

    def _check_ids(self, spec: InputSpec, x: Tensor) -> Tensor:
        """Return token ids as whole numbers; on a GPU the check does not wait."""
        ids = x.long()
        count = self.tokenizers()[token_key(spec.pretrained)].quantize.codebook_size if spec.pretrained else 0
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = (x != ids) | (ids < 0) | (ids >= count)
            if wrong.any():
                raise DataError(
                    f"{spec.name}: token ids are whole numbers from 0 to {count - 1}, got {x[wrong][0].item():g}. "
                    "Class ids of pixels need the height and width of the images."
                )
        return ids


class ObservedTokens(FrozenTokenizers):
    """Tokenizers of the modalities that a TiM model observes instead of generating them."""

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, Tensor], *, wait: bool = True) -> dict[str, Tensor]:
        """Return token ids [B, rows, columns] by name, computed in full precision.

        Args:
            inputs: Standardised images [B, bands, H, W] by name, or class ids [B, 1, H, W] for class maps. Other
                modalities are ignored.
            wait: Whether the check that images are finite may wait for a GPU.

        Raises:
            ConfigError: An observed modality is missing.
            DataError: A value is not a class id, NaN or infinite.
        """
        ids = {}
        for spec in self.specs:
            if spec.name not in inputs:
                raise ConfigError(
                    f"tim_observed names {spec.name}, but the model got {list(inputs)}. Add {spec.name} to the data "
                    "module's modalities, or leave it out of backbone_tim_observed: then it is generated."
                )
            try:
                ids[spec.name] = self.tokenize(spec, inputs[spec.name], wait=wait)
            except DataError as error:
                raise DataError(f"{spec.name}, named in tim_observed: {error}") from None
        return ids


def plan_observed(
    names: Sequence[str] | None, targets: Mapping[str, Modality], taken: Iterable[InputSpec], family: str
) -> tuple[InputSpec, ...]:
    """Return the modalities that are observed instead of generated, in the order of the targets.

    Args:
        names: Observed modalities.
        targets: Modalities that are generated or observed, by the user's names.
        taken: Inputs that the model takes as images.
        family: Models that the tokenizers belong to.

    Raises:
        ConfigError: A name is not a target, is an input already, or has no image tokenizer.
    """
    if isinstance(names, str):
        raise ConfigError(f"tim_observed must be a list, got the text '{names}'. Write tim_observed: [{names}].")
    wanted = [resolve(str(name)) for name in names or ()]
    images = [spec.pretrained for spec in taken]
    known = tokenizers_of(family)
    for modality in wanted:
        if modality not in targets.values():
            raise ConfigError(
                f"tim_observed names {modality.name}, which is not among tim_modalities {list(targets)}: it would "
                f"replace nothing.{suggest(modality.name, targets)}"
            )
        if modality.name not in known:
            raise ConfigError(
                f"tim_observed: {modality.name} has no image tokenizer, so it can only be generated. Modalities that "
                f"can be observed: {', '.join(known)}."
            )
    specs = []
    for name, modality in targets.items():
        if modality not in wanted:
            continue
        if modality in images:
            raise ConfigError(
                f"tim_observed names {name}, which the model takes as an image already. Name it in one place only."
            )
        specs.append(InputSpec.of_tokens(name, modality))
    return tuple(specs)


def _drop_decoders(module: FrozenTokenizers, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove the decoders of tokenizers, which TerraTorch's checkpoints contain."""
    for key in module.tokenizers():
        drop_unbuilt(module.get_submodule(key), state_dict, f"{prefix}{key}.")
