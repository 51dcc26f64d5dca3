"""Observed modalities that a TiM model takes instead of generating them: images become token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, DataError, suggest
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of


class ObservedTokens(nn.Module):
    """The encoding halves of frozen image tokenizers, always in evaluation mode.

    Args:
        specs: Observed modalities, from `plan_observed`.
        family: Models that the tokenizers belong to.
    """

    def __init__(self, specs: Sequence[InputSpec], family: str) -> None:
        super().__init__()
        self.specs = tuple(specs)
        variants = tokenizers_of(family)
        for spec in self.specs:
            assert spec.pretrained is not None
            self.add_module(spec.key, ImageTokenizer(variants[spec.pretrained.name], decoder=False))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> ObservedTokens:
        """Return itself, in evaluation mode."""
        return super().train(False)

    def tokenizers(self) -> dict[str, ImageTokenizer]:
        """Return the tokenizers by checkpoint key."""
        return {spec.key: self.get_submodule(spec.key) for spec in self.specs}  # type: ignore[misc]

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, Tensor], *, wait: bool = True) -> dict[str, Tensor]:
        """Return token ids [B, rows, columns] by name, computed in full precision.

        Args:
            inputs: By name, standardised images [B, bands, H, W], or class ids [B, 1, H, W] for class maps. Those of
                other modalities are ignored.
            wait: Whether the caller may wait for a GPU to see that images are finite.

        Raises:
            ConfigError: An observed modality is missing.
            DataError: A value is no class id, NaN or infinite.
        """
        ids = {}
        for spec in self.specs:
            if spec.name not in inputs:
                raise ConfigError(
                    f"tim_observed names {spec.name}, but the model got {list(inputs)}. Add {spec.name} to the data "
                    "module's modalities, or leave it out of backbone_tim_observed: then it is generated."
                )
            x = inputs[spec.name]
            self.get_submodule(spec.key).quantize.may_wait = wait  # type: ignore[union-attr]
            with torch.autocast(x.device.type, enabled=False):
                try:
                    ids[spec.name] = self.get_submodule(spec.key).tokenize(x)  # type: ignore[operator]
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
        taken: What the model takes as images anyway.
        family: Models that the tokenizers belong to.

    Raises:
        ConfigError: A name is no target, is an input already, or has no image tokenizer.
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
                f"tim_observed: {modality.name} has no image tokenizer and can only be generated. Can be observed: "
                f"{', '.join(known)}."
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
