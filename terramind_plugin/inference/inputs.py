"""Description of a model's input files, and the conversion of their values to the model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import Modality, band_text, find, statistics
from terramind_plugin.model.standardisation import Standardised
from terramind_plugin.raster.reader import Expected


@dataclass(frozen=True)
class FileInput:
    """One input of a model: its files, and the numbers that standardise them."""

    name: str
    """Name of the input: that of its modality, unless the configuration gives another one."""
    modality: Modality | None
    """Entry of the modality table; None for an input of the user's own."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0
    """Factor by which the values of files are multiplied after `shift` is added."""
    shift: float = 0.0
    """Number added to the values of files."""
    fill: float | None = None
    """Fill value of pixels without data, as in the data module; None for the mean of the band."""
    stored: tuple[str, ...] = ()
    """Names of the files' bands, if the configuration gives them."""
    read: tuple[str, ...] = ()
    """Names of the model's bands, if they are not all of `stored`."""
    dated: bool = False
    """True if files may hold several dates."""
    by_band: bool = False
    """True if files of several dates hold all dates of a band together, not all bands of a date."""
    keep_missing: bool = False
    """True if dates without data are left out instead of filled."""

    @classmethod
    def of_table(cls, name: str, bands: Sequence[str] = (), *, dated: bool = False) -> FileInput:
        """Return an input with the bands and statistics of the pre-training data.

        Args:
            name: Name of a modality.
            bands: Some of its bands; empty for all.
            dated: Whether files may hold several dates; dates without data are left out.

        Raises:
            ConfigError: There is no such modality or band.
        """
        modality = find(name)
        if modality is None:
            raise ConfigError(f"The mean and standard deviation of {name} are not known.")
        names = tuple(bands) or modality.band_names
        mean, std = statistics(modality, names)
        return cls(name, modality, tuple(mean), tuple(std), read=names, dated=dated, keep_missing=dated)

    def expect(self) -> Expected:
        """Return the bands and units that the files must have."""
        modality = self.modality
        bands = self.read or self.stored or (modality.band_names if modality is not None else ())
        if len(bands) != len(self.mean):
            bands = tuple(f"{self.name}_{number + 1}" for number in range(len(self.mean)))
        # Converted to the numbers of the files. The data module scales its fill value, but does not shift it.
        filled = [(mean / self.scale if self.fill is None else self.fill) - self.shift for mean in self.mean]
        plain = self.scale == 1 and not self.shift
        return Expected(
            modality.name if modality is not None else self.name,
            bands,
            tuple(filled),
            file_bands=self.stored,
            classes=len(modality.class_names) if modality is not None and plain else 0,
            scale=self.scale,
            offset=self.shift,
            dated=self.dated,
            by_band=self.by_band,
            keep_missing=self.keep_missing,
        )

    def standardise(self) -> Standardised:
        """Return the module that converts the files' values to the model's inputs."""
        return Standardised(self.mean, self.std, self.scale, self.shift)


def inputs_of_state(state: Mapping[str, Any]) -> tuple[dict[str, FileInput], str | None]:
    """Return the inputs that a data module has described in a checkpoint, and the name of the positions among them.

    Args:
        state: Result of `TerraMindDataModule.state_dict`, or the data module's arguments; may be empty.
    """
    means, stds = state.get("means"), state.get("stds")
    if not isinstance(means, Mapping) or not isinstance(stds, Mapping):
        return {}, None
    listed = _sources(state.get("modalities") or list(means))
    positions = next((name for name, source in listed.items() if _is_sequence(source)), None)
    dated, channel_major = bool(state.get("expand_temporal_dimension")), state.get("temporal_channel_major") or ()
    inputs = {}
    for name in listed:
        if name not in means or name not in stds:
            continue
        fill = state.get("no_data_replace")
        inputs[name] = FileInput(
            name,
            find(listed[name]),
            tuple(map(float, means[name])),
            tuple(map(float, stds[name])),
            float(entry_of(state, "constant_scale", name) or 1.0),
            float(entry_of(state, "offsets", name) or 0.0),
            None if fill is None else float(fill),
            band_names(entry_of(state, "dataset_bands", name)),
            band_names(entry_of(state, "output_bands", name)),
            dated=dated,
            by_band=dated and (channel_major is True or (channel_major is not True and name in channel_major)),
            keep_missing=dated and bool(state.get("allow_missing_modalities")),
        )
    return inputs, positions


def entry_of(settings: Mapping[str, Any], what: str, name: str) -> Any:
    """Return the setting of a modality, which may be given for each modality or once for all."""
    value = settings.get(what)
    return value.get(name) if isinstance(value, Mapping) else value


def band_names(bands: Iterable[Any] | None) -> tuple[str, ...]:
    """Return names of bands as texts; they may be members of TerraTorch's enums."""
    return tuple(map(band_text, bands or ()))


def names_of(modalities: Any) -> list[str]:
    """Return the names of the image inputs in the argument `modalities` of a backbone."""
    return [name for name, source in _sources(modalities or ()).items() if not _is_sequence(source)]


def _sources(modalities: Any) -> dict[str, str]:
    """Return the modality of each input by name, from a list of names and of mappings {name: modality}."""
    parts = [modalities] if isinstance(modalities, Mapping) else list(modalities)
    pairs = [pair for part in parts for pair in (part.items() if isinstance(part, Mapping) else [(part, part)])]
    return {str(name): source if isinstance(source, str) else str(name) for name, source in pairs}


def _is_sequence(name: str) -> bool:
    modality = find(name)
    return modality is not None and modality.kind == "sequence"
