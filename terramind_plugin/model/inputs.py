"""Inputs of a model: their description, and checks of the tensors that are passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.modalities import Modality, find, token_key

Modalities = Sequence[str | Mapping[str, int | str]] | Mapping[str, int | str] | None
"""Modalities as a user names them: {name: channels} adds one without pre-trained weights, {name: modality} one with
those of another."""


@dataclass(frozen=True)
class InputSpec:
    """An input of a model."""

    name: str
    """Name chosen by the user, by which tensors are passed."""
    key: str
    """Name of the input in checkpoints."""
    channels: int
    pretrained: Modality | None
    """The known modality; None for a new one."""
    band_sources: tuple[int | None, ...] | None
    """Index of each channel among the pre-training bands, None for a new band; None for all bands in order."""
    is_tokens: bool = False
    """True if the model takes the input as token ids, not as pixels."""
    new_bands: tuple[str, ...] = ()
    """Names of the bands without pre-trained weights."""

    @classmethod
    def of_tokens(cls, name: str, modality: Modality, key: str | None = None) -> InputSpec:
        """Return the specification of a known modality that the model takes as token ids."""
        return cls(name, key or token_key(modality), len(modality.bands), modality, None, is_tokens=True)

    @property
    def source_key(self) -> str | None:
        """Return the name of the input's weights in the published checkpoints; None for a new modality."""
        if self.pretrained is None:
            return None
        return self.pretrained.token_key if self.is_tokens else self.pretrained.patch_key

    @property
    def is_sequence(self) -> bool:
        """Return whether the input is a sequence, which has no position in a feature map."""
        return self.pretrained is not None and self.pretrained.kind == "sequence"


@dataclass(frozen=True)
class Advice:
    """Advice in messages about inputs that do not fit, in terms of the arguments of a kind of model."""

    unknown: str
    """For a modality that the model does not take."""
    selection: str
    """For images that do not have all bands; `{name}` is replaced by the modality."""
    sizes: str
    """For images of several sizes."""
    series: str
    """For images with an additional dimension."""


BACKBONE = Advice(
    unknown="The data module's modalities and backbone_modalities must agree.",
    selection="for a selection name the bands, e.g. backbone_bands: {{{name}: [...]}}.",
    sizes="Resample the modalities to one grid, or use merge_method dict or none.",
    series="For time series set backbone_use_temporal: true.",
)
TIM = replace(BACKBONE, sizes="Resample the modalities to one grid.")
GENERATOR = Advice(
    unknown="Give it what its argument modalities names.",
    selection="for a selection name them, e.g. bands: {{{name}: [...]}}, or --bands of terramind generate.",
    sizes="Resample the modalities to one grid.",
    series="A generator takes one date at a time.",
)


def check_size(size: int | Sequence[int], patch_size: int, name: str = "image_size") -> tuple[int, int]:
    """Return height and width in pixels.

    Args:
        size: Height and width, or one number for both.
        patch_size: Patch size in pixels; height and width must be multiples of it.
        name: Argument that has the size, for the message.

    Raises:
        ConfigError: They are not multiples of the patch size.
    """
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or any(not isinstance(n, int) or n < patch_size or n % patch_size for n in sizes):
        raise ConfigError(f"{name} must be a multiple of {patch_size} in height and width, got {size}.")
    return sizes[0], sizes[1]


def collect_inputs(
    specs: Sequence[InputSpec],
    x: Tensor | Mapping[str, Tensor] | None,
    named: Mapping[str, Tensor],
    advice: Advice = BACKBONE,
) -> dict[str, Tensor]:
    """Return the given tensors by the model's names, in the model's order.

    Args:
        specs: Inputs of the model.
        x: Tensors by modality, or the tensor of the first modality.
        named: Tensors passed by keyword.
        advice: Advice for messages.

    Raises:
        ConfigError: No tensor was given, or a modality that the model does not take.
    """
    given: dict[str, Tensor] = {}
    if isinstance(x, Mapping):
        given.update(x)
    elif x is not None:
        given[specs[0].name] = x
    given.update(named)
    if not given:
        raise ConfigError(f"The model got no input. It takes {[spec.name for spec in specs]}.")
    ordered = {spec.name: given.pop(spec.name) for spec in specs if spec.name in given}
    if given:
        ordered = {**ordered, **_match_spellings(specs, given, ordered, advice)}
        ordered = {spec.name: ordered[spec.name] for spec in specs if spec.name in ordered}
    return ordered


def _match_spellings(
    specs: Sequence[InputSpec], given: Mapping[str, Tensor], taken: Mapping[str, Tensor], advice: Advice
) -> dict[str, Tensor]:
    by_modality: dict[str, list[str]] = {}
    for spec in specs:
        if spec.pretrained is not None:
            by_modality.setdefault(spec.pretrained.name, []).append(spec.name)
    matched = {}
    for name, tensor in given.items():
        modality = find(name)
        targets = by_modality.get(modality.name, []) if modality is not None else []
        target = targets[0] if len(targets) == 1 else None
        if target is None or target in taken or target in matched:
            names = [spec.name for spec in specs]
            raise ConfigError(
                f"The model got a modality '{name}' that it does not take. It takes {names}.{suggest(name, names)} "
                f"{advice.unknown}"
            )
        matched[target] = tensor
    return matched


def check_shapes(
    specs: Sequence[InputSpec],
    inputs: Mapping[str, Tensor],
    patch_size: int,
    *,
    same_size: bool,
    advice: Advice = BACKBONE,
) -> None:
    """Check that tensors have dimensions, channels and sizes that the model can take.

    Args:
        specs: Inputs of the model.
        inputs: Tensors by the model's names: images [B, channels, H, W], of class maps also class ids [B, H, W],
            token ids [B, rows, columns] and positions [B, 2] or [B, 2, H, W].
        patch_size: Patch size in pixels; height and width must be multiples of it.
        same_size: Whether all modalities must have the same height and width.
        advice: Advice for messages.

    Raises:
        ConfigError: A tensor has other dimensions, channels or sizes.
    """
    first = next(iter(inputs))
    sizes: dict[str, list[int]] = {}
    for spec in specs:
        x = inputs.get(spec.name)
        if x is None:
            continue
        if spec.is_sequence:
            _check_positions(spec, x)
        elif spec.is_tokens and x.ndim == 3:
            side = patch_size if is_token_ids(spec, inputs, patch_size) else 1
            sizes[spec.name] = [length * side for length in x.shape[1:]]
        else:
            _check_image(spec, x, advice)
            sizes[spec.name] = list(x.shape[2:])
        height, width = sizes.get(spec.name, (0, 0))
        if height % patch_size or width % patch_size:
            raise ConfigError(
                f"{spec.name}: height and width must be multiples of {patch_size}, got {height} x {width}. "
                "Crop or pad the chips."
            )
        if x.shape[0] != inputs[first].shape[0]:
            raise ConfigError(
                f"Batch sizes differ: {first} {inputs[first].shape[0]}, {spec.name} {x.shape[0]}. In a time series "
                "each date counts as a sample: every modality needs as many dates."
            )
    names = list(sizes)
    others = [name for name in names if same_size and sizes[name] != sizes[names[0]]]
    if others:
        raise ConfigError(f"Sizes differ: {names[0]} {sizes[names[0]]}, {others[0]} {sizes[others[0]]}. {advice.sizes}")


def is_token_ids(spec: InputSpec, inputs: Mapping[str, Tensor], patch_size: int) -> bool:
    """Return whether a tensor [B, height, width] of a tokenized modality holds token ids, not class ids of pixels.

    Class ids have the height and width of the images beside them. Without an image, a height and width that are
    multiples of the patch size are those of pixels.

    Args:
        spec: The input.
        inputs: Tensors by the model's names.
        patch_size: Patch size of the model in pixels.
    """
    x = inputs[spec.name]
    if x.ndim != 3 or spec.pretrained is None:
        return False
    if spec.pretrained.kind != "classes":
        return True
    others = [tuple(image.shape[2:]) for name, image in inputs.items() if name != spec.name and image.ndim == 4]
    if others:
        return tuple(x.shape[1:]) != others[0]
    return bool(x.shape[1] % patch_size or x.shape[2] % patch_size)


def _check_positions(spec: InputSpec, x: Tensor) -> None:
    if x.ndim not in (2, 4) or x.shape[1] != 2:
        raise ConfigError(
            f"{spec.name}: expected positions [batch, 2] as (longitude, latitude) in degrees, or an image of them "
            f"[batch, 2, height, width], got {list(x.shape)}."
        )


def _check_image(spec: InputSpec, x: Tensor, advice: Advice) -> None:
    if x.ndim != 4:
        hint = f" {advice.series}" if x.ndim == 5 else ""
        more = " or of token ids [batch, rows, columns]" if spec.is_tokens else ""
        raise ConfigError(
            f"{spec.name}: expected a tensor [batch, bands, height, width]{more}, got {list(x.shape)}.{hint}"
        )
    scores = len(spec.pretrained.class_names) if spec.is_tokens and spec.pretrained is not None else 0
    if x.shape[1] not in (spec.channels, scores or spec.channels):
        raise ConfigError(_channels_message(spec, x.shape[1], advice))


def _channels_message(spec: InputSpec, got: int, advice: Advice) -> str:
    message = f"{spec.name}: expected {spec.channels} channels, got {got}."
    if spec.pretrained is None:
        return message
    if spec.band_sources is None:
        return (
            f"{message} The bands of {spec.pretrained.name} are {', '.join(spec.pretrained.band_names)}; "
            f"{advice.selection.format(name=spec.name)}"
        )
    return f"{message} Data and backbone_bands must list the same bands."
