"""Inputs of a model: its configured modalities and bands, and checks of the tensors it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.modalities import MODALITIES, Modality, find, resolve, token_key

Modalities = Sequence[str | Mapping[str, int]] | Mapping[str, int] | None
"""Modalities as a user names them; {name: channels} adds one without pre-trained weights."""


@dataclass(frozen=True)
class InputSpec:
    """One modality that a model takes."""

    name: str
    """The name the user gave, by which tensors are passed."""
    key: str
    """Name of the input in checkpoints."""
    channels: int
    pretrained: Modality | None
    """Entry of the modality table; None for a modality that is new."""
    band_sources: tuple[int | None, ...] | None
    """Position of each channel in the pre-training data, None for a new band; None for all bands in order."""

    @classmethod
    def of_tokens(cls, name: str, modality: Modality) -> InputSpec:
        """Return a modality of the table that the model takes as token ids."""
        return cls(name, token_key(modality), len(modality.bands), modality, None)

    @property
    def is_tokens(self) -> bool:
        """Return whether the input enters the model as token ids, not as pixels."""
        return self.pretrained is not None and self.key == self.pretrained.token_key

    @property
    def is_sequence(self) -> bool:
        """Return whether the input is a short text, which has no position in a feature map."""
        return self.pretrained is not None and self.pretrained.kind == "sequence"


@dataclass(frozen=True)
class Advice:
    """Advice for inputs that do not fit, in the arguments of a kind of model."""

    unknown: str
    """About a modality that the model does not take."""
    selection: str
    """About channels that are not all bands; `{name}` stands for the modality."""
    sizes: str
    """About images of several sizes."""
    series: str
    """About images with a dimension more."""


BACKBONE = Advice(
    unknown="The data module's modalities and backbone_modalities must agree.",
    selection="for a selection name the bands, e.g. backbone_bands: {{{name}: [...]}}.",
    sizes="Resample the modalities to one grid, or use merge_method dict or none.",
    series="For time series set backbone_use_temporal: true.",
)
TIM = replace(BACKBONE, sizes="Resample the modalities to one grid.")
GENERATOR = Advice(
    unknown="Give it what its argument modalities names.",
    selection="a generator takes all of them, in this order.",
    sizes="Resample the modalities to one grid.",
    series="A generator takes one date at a time.",
)


def plan_inputs(
    modalities: Modalities,
    bands: Mapping[str, Sequence[object]] | None = None,
    new_bands: Sequence[object] = (),
    *,
    tokens: bool = False,
) -> tuple[InputSpec, ...]:
    """Return what a model takes, in the user's order.

    Args:
        modalities: Names of the modality table; a mapping {name: channels} adds a modality that is new.
        bands: Bands of a modality in the order of the tensor's channels, for modalities that have not all of them.
        new_bands: Bands named in `bands`, by name or number, that the pre-training data did not have.
        tokens: Whether the model also takes token ids: of modalities without pixels in the published models (LULC,
            NDVI, coords), and of those named by the checkpoint key of their tokens.

    Raises:
        ConfigError: A modality or band is unknown, named twice, or not possible as input.
    """
    if not modalities:
        raise ConfigError(
            "modalities is empty: name what the model gets, e.g. modalities: [S2L2A, S1GRD]. "
            f"Known: {', '.join(MODALITIES)}; a new one is given with its channels, e.g. {{THERMAL: 1}}."
        )
    if isinstance(modalities, str):
        raise ConfigError(f"modalities must be a list, got the text '{modalities}'. Write modalities: [{modalities}].")
    bands = _bands_by_key(bands or {})
    entries: Sequence[str | Mapping[str, int]] = [modalities] if isinstance(modalities, Mapping) else list(modalities)
    specs: list[InputSpec] = []
    for entry in entries:
        if isinstance(entry, Mapping):
            specs += [_new_modality(name, channels) for name, channels in entry.items()]
            continue
        modality = resolve(str(entry))
        if tokens and (modality.patch_key is None or entry == modality.token_key):
            specs.append(InputSpec.of_tokens(str(entry), modality))
        else:
            specs.append(_known_modality(str(entry), modality, bands, new_bands))
    keys = [spec.key for spec in specs]
    for spec in specs:
        if keys.count(spec.key) > 1:
            raise ConfigError(f"Modality '{spec.name}' is named twice in modalities {[s.name for s in specs]}.")
    unused = set(bands) - set(keys)
    if unused:
        raise ConfigError(
            f"bands names {sorted(unused)}, which is not among the pre-trained modalities of {[s.name for s in specs]}."
        )
    _check_new_bands(bands, new_bands)
    return tuple(specs)


def _bands_by_key(bands: Mapping[str, Sequence[object]]) -> dict[str, Sequence[object]]:
    by_key = {}
    for name, names in bands.items():
        modality = resolve(name)
        if not names or isinstance(names, str):
            raise ConfigError(f"bands of {name} must be a list of band names, got {names!r}.")
        by_key[modality.patch_key or modality.name] = names
    return by_key


def _check_new_bands(bands: Mapping[str, Sequence[object]], new_bands: Sequence[object]) -> None:
    named = [str(band) for names in bands.values() for band in names]
    for band in map(str, new_bands):
        if band not in named:
            raise ConfigError(f"new_bands names '{band}', which no entry of bands holds.{suggest(band, named)}")


def _new_modality(name: str, channels: Any) -> InputSpec:
    known = find(name)
    if known is not None and known.patch_key is not None:
        raise ConfigError(
            f"'{name}: {channels}' declares a new modality, but {known.name} has pre-trained weights. "
            "Write its name alone, or choose another name; a backbone takes a selection of its bands by "
            f"bands: {{{known.name}: [...]}}."
        )
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ConfigError(f"New modality '{name}' needs its number of channels, got {channels!r}. Write {{{name}: 3}}.")
    if not name.replace("_", "").isalnum() or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"New modality '{name}': use letters, digits and underscores, and no word of torch's.")
    return InputSpec(name=name, key=name, channels=channels, pretrained=None, band_sources=None)


def _known_modality(
    name: str, modality: Modality, bands: Mapping[str, Sequence[object]], new_bands: Sequence[object]
) -> InputSpec:
    if modality.patch_key is None:
        raise ConfigError(
            f"Modality {modality.name} enters TerraMind as tokens, which this backbone does not take yet. "
            f"Use modalities with pixels: {', '.join(m.name for m in MODALITIES.values() if m.patch_key)}; "
            f"give it to a _tim backbone by backbone_tim_observed: [{modality.name}]; "
            f"or declare it as a new one under another name, e.g. {{{modality.name}_map: 1}}."
        )
    names = bands.get(modality.patch_key)
    sources: tuple[int | None, ...] | None = None
    if names is not None:
        new = set(map(str, new_bands))
        sources = tuple(None if str(band) in new else _band(modality, band) for band in names)
        known = [source for source in sources if source is not None]
        if len(set(known)) < len(known):
            raise ConfigError(f"bands of {modality.name} names a band twice: {list(names)}.")
    return InputSpec(
        name=name,
        key=modality.patch_key,
        channels=len(modality.bands) if sources is None else len(sources),
        pretrained=modality,
        band_sources=sources,
    )


def _band(modality: Modality, band: object) -> int:
    try:
        return modality.band_index(band)
    except ConfigError as error:
        raise ConfigError(f"{error} If it is a new band, add it to new_bands: [{band}].") from None


def check_size(size: int | Sequence[int], patch_size: int, name: str = "image_size") -> tuple[int, int]:
    """Return height and width in pixels.

    Args:
        size: Height and width, or one number for both.
        patch_size: Both must be multiples of it.
        name: Argument that has the size, for the message.

    Raises:
        ConfigError: They are not.
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
        specs: What the model takes.
        x: Tensors by modality, or the tensor of the first modality.
        named: Tensors passed by keyword.
        advice: What messages tell to do.

    Raises:
        ConfigError: Nothing was given, or a modality that the model does not take.
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
    by_modality = {spec.pretrained.name: spec.name for spec in specs if spec.pretrained is not None}
    matched = {}
    for name, tensor in given.items():
        modality = find(name)
        target = by_modality.get(modality.name) if modality is not None else None
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
    """Check that tensors are [B, channels, H, W] with sizes the model can take.

    Args:
        specs: What the model takes.
        inputs: Tensors by the model's names.
        patch_size: Height and width must be multiples of it.
        same_size: Whether all modalities must have the same height and width.
        advice: What messages tell to do.

    Raises:
        ConfigError: A tensor has other dimensions, channels or sizes.
    """
    first = next(iter(inputs))
    for spec in specs:
        x = inputs.get(spec.name)
        if x is None:
            continue
        if x.ndim != 4:
            hint = f" {advice.series}" if x.ndim == 5 else ""
            raise ConfigError(
                f"{spec.name}: expected a tensor [batch, bands, height, width], got {list(x.shape)}.{hint}"
            )
        if x.shape[1] != spec.channels:
            raise ConfigError(_channels_message(spec, x.shape[1], advice))
        if x.shape[2] % patch_size or x.shape[3] % patch_size:
            raise ConfigError(
                f"{spec.name}: height and width must be multiples of {patch_size}, got {x.shape[2]} x {x.shape[3]}. "
                "Crop or pad the chips."
            )
        if x.shape[0] != inputs[first].shape[0]:
            raise ConfigError(
                f"Batch sizes differ: {first} {inputs[first].shape[0]}, {spec.name} {x.shape[0]}. In a time series "
                "each date counts as a sample: every modality needs as many dates."
            )
        if same_size and x.shape[2:] != inputs[first].shape[2:]:
            raise ConfigError(
                f"Sizes differ: {first} {list(inputs[first].shape[2:])}, {spec.name} {list(x.shape[2:])}. "
                f"{advice.sizes}"
            )


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
