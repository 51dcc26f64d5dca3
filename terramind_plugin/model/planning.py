"""Planning of a model's inputs: modalities and bands as a user names them, matched with the modality table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.inputs import InputSpec, Modalities
from terramind_plugin.model.modalities import MODALITIES, Modality, band_text, find_exact, resolve

ChosenBands = Mapping[str, Sequence[object]]
"""Bands by modality, in the order of the tensor's channels."""


def plan_inputs(
    modalities: Modalities,
    bands: ChosenBands | None = None,
    new_bands: Sequence[object] = (),
    *,
    tokens: bool = False,
    share_embeddings: bool = False,
    in_chans: int | None = None,
) -> tuple[InputSpec, ...]:
    """Return the inputs of a model in the user's order.

    Args:
        modalities: Names of the modality table, or longer names that hold one, such as S2L2A_before, which all use
            its embedding. {name: modality} adds an input that starts from the weights of a modality, {name: channels}
            one that is new.
        bands: ChosenBands of an input in the order of the tensor's channels, for inputs that have not all of them.
        new_bands: ChosenBands named in `bands`, by name or number, that the pre-training data did not have.
        tokens: Whether the model also takes token ids: of modalities without pixels in the published models (LULC,
            NDVI, coords), and of those named by the checkpoint key of their tokens.
        share_embeddings: Whether inputs given as {name: modality} use the modality's embedding, not a copy.
        in_chans: Channels of the input 'image' where `modalities` is empty, as in TerraTorch.

    Raises:
        ConfigError: A modality or band is unknown, named twice, or not possible as input.
    """
    if isinstance(modalities, str):
        raise ConfigError(f"modalities must be a list, got the text '{modalities}'. Write modalities: [{modalities}].")
    if not modalities and in_chans is not None:
        modalities = {"image": in_chans}
    elif not modalities:
        raise ConfigError(
            "modalities is empty: name what the model gets, e.g. modalities: [S2L2A, S1GRD]. "
            f"Known: {', '.join(MODALITIES)}; a new one is given with its channels, e.g. {{THERMAL: 1}}."
        )
    elif in_chans is not None:
        raise ConfigError(f"in_chans is for empty modalities, got {in_chans!r} and {modalities!r}. Leave one out.")
    entries: Sequence[Any] = [modalities] if isinstance(modalities, Mapping) else list(modalities or ())
    specs = [spec for entry in entries for spec in _plan_entry(entry, tokens, share_embeddings)]
    _refuse_repeated(specs)
    named = _bands_by_input(bands or {}, specs)
    specs = [_choose_bands(spec, named[spec.name], new_bands) if spec.name in named else spec for spec in specs]
    _check_new_bands(bands or {}, new_bands)
    _check_shared(specs)
    return tuple(specs)


def say_sources(specs: Sequence[InputSpec]) -> list[str]:
    """Describe each input whose name is not that of its modality: its initial weights, and its new bands."""
    lines = []
    for spec in specs:
        if spec.pretrained is None or find_exact(spec.name) is not None:
            continue
        sharing = [other.name for other in specs if other.key == spec.key and other.name != spec.name]
        line = f"{spec.name} has the {'token ids' if spec.is_tokens else 'patches'} of {spec.pretrained.name}"
        if sharing:
            line += f", in one embedding with {', '.join(sharing)}"
        elif spec.key != spec.source_key:
            line += ", in an embedding of its own"
        if spec.new_bands:
            line += f"; these bands are new and start from random weights: {', '.join(spec.new_bands)}"
        lines.append(f"{line}.")
    return lines


def _plan_entry(entry: Any, tokens: bool, shared: bool) -> list[InputSpec]:
    """Return the inputs that one entry of `modalities` names."""
    if not isinstance(entry, Mapping):
        modality = resolve(str(entry))
        as_tokens = tokens and (modality.patch_key is None or entry == modality.token_key)
        return [_known_modality(str(entry), modality, as_tokens)]
    specs = []
    for name, given in entry.items():
        if not isinstance(given, str):
            specs.append(_new_modality(str(name), given))
            continue
        try:
            modality = resolve(given)
        except ConfigError as error:
            raise ConfigError(
                f"'{name}' needs its number of channels if it is new, or a modality whose weights it starts from; got "
                f"'{given}'. {error}"
            ) from None
        spec = _known_modality(str(name), modality, tokens and (modality.patch_key is None))
        exact = find_exact(str(name))
        if exact is not None and exact is not modality:
            raise ConfigError(
                f"{{{name}: {given}}}: {name} is the name of another modality. Choose a name of your own."
            )
        if exact is None and not shared:
            _check_name(str(name), f"{{{name}: {given}}}")
            spec = replace(spec, key=str(name))
        specs.append(spec)
    return specs


def _known_modality(name: str, modality: Modality, as_tokens: bool) -> InputSpec:
    if as_tokens:
        return InputSpec.of_tokens(name, modality)
    if modality.patch_key is None:
        raise ConfigError(
            f"Modality {modality.name} enters TerraMind as tokens, which this model does not take. "
            f"Use modalities with pixels: {', '.join(m.name for m in MODALITIES.values() if m.patch_key)}; "
            f"or declare it as a new one, e.g. {{{modality.name}: 1}}."
        )
    return InputSpec(name, modality.patch_key, len(modality.bands), modality, None)


def _new_modality(name: str, channels: Any) -> InputSpec:
    known = find_exact(name)
    if known is not None and known.patch_key is not None:
        raise ConfigError(
            f"'{name}: {channels}' declares a new modality, but {known.name} has pre-trained weights. "
            "Write its name alone, or choose another name; a selection of its bands is given by "
            f"bands: {{{known.name}: [...]}}."
        )
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ConfigError(
            f"New modality '{name}' needs its number of channels, got {channels!r}. Write {{{name}: 3}}; or "
            f"{{{name}: S2L2A}} for an input that starts from the weights of S2L2A."
        )
    _check_name(name, f"New modality '{name}'")
    return InputSpec(name=name, key=name, channels=channels, pretrained=None, band_sources=None)


def _check_name(name: str, what: str) -> None:
    if not name.replace("_", "").isalnum() or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"{what}: use letters, digits and underscores, and no word of torch's.")


def _refuse_repeated(specs: Sequence[InputSpec]) -> None:
    """Raise an error if two inputs have the same name, or a modality is named twice in different spellings."""
    names = [spec.name for spec in specs]
    for spec in specs:
        exact = [other for other in specs if other.key == spec.key and find_exact(other.name) is not None]
        if names.count(spec.name) > 1 or len(exact) > 1:
            raise ConfigError(
                f"Modality '{spec.name}' is named twice in modalities {names}. Two images of one modality need names "
                f"of their own, e.g. {{before: {getattr(spec.pretrained, 'name', 'S2L2A')}}}."
            )


def _bands_by_input(bands: ChosenBands, specs: Sequence[InputSpec]) -> dict[str, Sequence[object]]:
    """Return the bands by input; an entry for a modality applies to all inputs of that modality."""
    named: dict[str, Sequence[object]] = {}
    own = {spec.name for spec in specs}
    for name, chosen in sorted(bands.items(), key=lambda item: item[0] in own):
        if not chosen or isinstance(chosen, str):
            raise ConfigError(f"bands of {name} must be a list of band names, got {chosen!r}.")
        modality = None if name in own else resolve(str(name))
        meant = [
            spec
            for spec in specs
            if spec.pretrained is not None and (spec.name == name if modality is None else spec.pretrained is modality)
        ]
        if not meant:
            raise ConfigError(
                f"bands names '{name}', which is not among the pre-trained modalities of "
                f"{[spec.name for spec in specs]}.{suggest(str(name), own)}"
            )
        named |= {spec.name: chosen for spec in meant}
    for spec in specs:  # inputs that share an embedding have the same bands
        same = [other for other in specs if other.key == spec.key and other.name in named]
        if same and spec.name not in named:
            named[spec.name] = named[same[0].name]
    return named


def _choose_bands(spec: InputSpec, names: Sequence[object], new_bands: Sequence[object]) -> InputSpec:
    """Return an input with a selection of its modality's bands."""
    modality = spec.pretrained
    assert modality is not None  # only these have bands
    new = set(map(str, new_bands))
    sources: list[int | None] = []
    for band in names:
        source = None if str(band) in new else modality.find_band(band)
        if source is None and str(band) not in new:
            _refuse_unknown(spec, modality, band)
        sources.append(source)
    known = [source for source in sources if source is not None]
    if len(set(known)) < len(known):
        raise ConfigError(f"bands of {spec.name} names a band twice: {list(map(str, names))}.")
    if spec.is_tokens:
        if known != list(range(len(modality.bands))):
            raise ConfigError(f"{spec.name} enters the model as token ids of all its bands; leave it out of bands.")
        return spec
    fresh = tuple(band_text(band) for band, source in zip(names, sources, strict=True) if source is None)
    return replace(spec, channels=len(sources), band_sources=tuple(sources), new_bands=fresh)


def _refuse_unknown(spec: InputSpec, modality: Modality, band: object) -> None:
    """Raise an error for a band that the modality lacks, unless the input is of another sensor, such as S2L1C_L8."""
    try:
        modality.band_index(band)
    except ConfigError as error:
        if find_exact(spec.name) is None and "Did you mean" not in str(error):
            return
        raise ConfigError(f"{error} If it is a new band, add it to new_bands: [{band_text(band)}].") from None


def _check_new_bands(bands: ChosenBands, new_bands: Sequence[object]) -> None:
    named = [str(band) for names in bands.values() for band in names]
    for band in map(str, new_bands):
        if band not in named:
            raise ConfigError(f"new_bands names '{band}', which no entry of bands holds.{suggest(band, named)}")


def _check_shared(specs: Sequence[InputSpec]) -> None:
    """Raise an error if inputs that share an embedding have different bands."""
    first: dict[str, InputSpec] = {}
    for spec in specs:
        other = first.setdefault(spec.key, spec)
        if other.band_sources != spec.band_sources:
            raise ConfigError(
                f"{other.name} and {spec.name} have one embedding and need the same bands. For embeddings of their "
                f"own write modalities: [{{{other.name}: {getattr(spec.pretrained, 'name', '')}}}, "
                f"{{{spec.name}: {getattr(spec.pretrained, 'name', '')}}}]."
            )
