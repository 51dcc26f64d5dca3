"""Arguments of the data module, checked and completed from the modality table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terramind_plugin.data.dates import ROOTS, count_listed, spread_entries, spread_names
from terramind_plugin.data.terratorch_internals import generate_bands_intervals
from terramind_plugin.data.transforms import build_transforms
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.modalities import MODALITIES, Modality, band_text, find, is_position, resolve, statistics
from terramind_plugin.raster.decoded import DecodedChips
from terramind_plugin.system.files import plain

STAGES = ("train", "val", "test", "predict")
BY_MODALITY = (
    "image_grep", "dataset_bands", "output_bands", "constant_scale", "rgb_indices", "data_root",
    *(f"{stage}_data_root" for stage in STAGES), *(f"{stage}_transform" for stage in STAGES[:3]),
)  # fmt: skip
"""Arguments that may have an entry for each modality."""
KEPT = (
    "task", "num_classes", "dataset_bands", "output_bands", "constant_scale", "no_data_replace", "no_label_replace",
    "expand_temporal_dimension", "temporal_channel_major", "image_grep",
)  # fmt: skip
"""Arguments of the data module that checkpoints keep."""


@dataclass(frozen=True)
class Settled:
    """Checked arguments of TerraTorch's data module, and the modalities, bands and statistics that follow from them."""

    arguments: dict[str, Any]
    """Arguments of TerraTorch's data module."""
    bands: dict[str, list[Any] | None]
    """Names of the bands that are read, by modality; None for all."""
    means: dict[str, list[float]]
    """Mean of each band, by modality."""
    stds: dict[str, list[float]]
    """Standard deviation of each band, by modality."""
    counts: dict[str, int]
    """Number of dates that have files of their own, by modality."""
    stand_ins: tuple[str, ...]
    """Names of the arguments that TerraTorch requires and that were not given."""
    modalities: list[str]
    """Names of the modalities that come from files."""
    sources: dict[str, str]
    """Modality of the table for each input with another name, from entries {name: modality}."""
    positions: str | None
    """Name of the input that is the position of a chip, from its georeference; None if there is none."""


def settle(
    modalities: Sequence[str | Mapping[str, str | int]],
    means: Mapping[str, list[float]] | None,
    stds: Mapping[str, list[float]] | None,
    offsets: Mapping[str, float] | None,
    allow_missing: bool,
    kwargs: Mapping[str, Any],
) -> Settled:
    """Return the arguments of TerraTorch's data module, checked and completed.

    Args:
        modalities: See `TerraMindDataModule`.
        means: See `TerraMindDataModule`.
        stds: See `TerraMindDataModule`.
        offsets: See `TerraMindDataModule`.
        allow_missing: Whether samples may lack a modality.
        kwargs: Further arguments.

    Raises:
        ConfigError: An argument is wrong; the message says what is possible.
    """
    if isinstance(modalities, str) or not modalities:
        raise ConfigError(f"modalities must be a list such as [S2L1C, S1GRD], got {modalities!r}.")
    every, sources = name_sources(modalities)
    names, positions = _without_positions(every, kwargs)
    for key in BY_MODALITY:
        check_names(key, kwargs.get(key), every)
    for key, mapping in (("means", means), ("stds", stds), ("offsets", offsets)):
        check_names(key, mapping, every)
    arguments = {**kwargs, **match_bands(kwargs, sources)}
    temporal = bool(kwargs.get("expand_temporal_dimension"))
    for stage in STAGES[:3]:
        given = kwargs.get(f"{stage}_transform")
        arguments[f"{stage}_transform"] = build_transforms(given, names, temporal=temporal)
    images = [name for name in kwargs.get("image_modalities") or names if not is_position(name)]
    if len(images) < len(names):
        arguments["image_modalities"] = images
    bands = {name: bands_read(name, arguments) for name in images}
    band_means, band_stds = settle_statistics(images, bands, means, stds, sources)
    if kwargs.get("rgb_indices") is None and kwargs.get("rgb_modality") is None:
        arguments["rgb_indices"] = {images[0]: find_rgb(sources.get(images[0], images[0]), bands[images[0]])}
    check_missing_options(arguments, allow_missing)
    for key in ROOTS:
        arguments[key] = read_roots(key, kwargs.get(key), names, allow_missing)
    counts = count_listed(kwargs, names, temporal)
    arguments |= _spread(arguments, counts)
    stand_ins = make_stand_ins(arguments, spread_names(names, counts))
    settled = {**arguments, **stand_ins}
    return Settled(settled, bands, band_means, band_stds, counts, tuple(stand_ins), names, sources, positions)


def _spread(arguments: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the arguments with an entry for the files of each date, and copies of those that TerraTorch changes."""
    listed = (*ROOTS, "image_grep")
    shared = {*BY_MODALITY, "predict_dataset_bands", "predict_output_bands"} - {*listed}
    found = {key: spread_entries(arguments.get(key), counts, listed=True) for key in listed}
    found |= {key: spread_entries(arguments[key], counts) for key in sorted(shared) if key in arguments}
    if arguments.get("image_modalities"):
        found["image_modalities"] = spread_names(arguments["image_modalities"], counts)
    return found


def name_sources(modalities: Sequence[str | Mapping[str, str | int]]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the inputs, and the modality of each input given as {name: modality}.

    Args:
        modalities: Names, {name: modality}, and {name: channels} for a modality of the user's own.

    Raises:
        ConfigError: A modality is unknown, or a name comes twice.
    """
    names: list[str] = []
    sources: dict[str, str] = {}
    for entry in modalities:
        for name, given in entry.items() if isinstance(entry, Mapping) else [(entry, None)]:
            names.append(str(name))
            if isinstance(given, str):
                try:
                    sources[str(name)] = resolve(given).name
                except ConfigError as error:
                    raise ConfigError(f"modalities: {{{name}: {given}}}: {error}") from None
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"modalities names '{name}' twice: {', '.join(names)}.")
    return names, sources


def _without_positions(names: Sequence[str], kwargs: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Return the modalities that come from files, and the name of the positions if they come from georeferences.

    Raises:
        ConfigError: There is no image, or concat_bands makes one tensor of all inputs.
    """
    roots = [kwargs.get(key) for key in ROOTS]
    given = {str(name) for root in roots if isinstance(root, Mapping) for name in root}
    found = next((name for name in names if is_position(name)), None)
    if found is None:
        return list(names), None
    if all(is_position(name) for name in names):
        raise ConfigError(f"modalities has no image: add one to {found}, e.g. modalities: [S2L2A, {found}].")
    if kwargs.get("concat_bands"):
        raise ConfigError(f"concat_bands joins images to one tensor, which cannot hold {found}. Remove one of them.")
    if found in given:  # a table with longitude and latitude of each sample
        return list(names), None
    return [name for name in names if name != found], found


def check_names(argument: str, mapping: Any, modalities: Sequence[str]) -> None:
    """Raise an error if a key is a misspelt modality, because nothing would read its entry.

    Entries of modalities that are not in use are accepted.

    Args:
        argument: Name of the argument, for the message.
        mapping: Entries by modality; any other value passes.
        modalities: Modalities in use.

    Raises:
        ConfigError: A key is misspelt; the message suggests the right one.
    """
    if not isinstance(mapping, Mapping):
        return
    lacking = [name for name in modalities if name not in mapping]
    for key in map(str, mapping):
        if key in modalities:
            continue
        known = find(key)
        same = [name for name in lacking if (find(name) is known if known else name.startswith(key.upper()))]
        hint = suggest(key, same or lacking) if key not in modalities and (same or key not in MODALITIES) else ""
        if same or hint:
            raise ConfigError(
                f"{argument} has an entry '{key}', but modalities has {', '.join(modalities)}: nothing would read it."
                f"{hint or suggest(same[0], same)}"
            )


def match_bands(kwargs: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Return output_bands and predict_output_bands with the names that dataset_bands uses, e.g. RED for B04.

    Args:
        kwargs: Arguments of the data module.
        sources: See `Settled`.

    Raises:
        ConfigError: A modality has output_bands without dataset_bands, or some that are not among them.
    """
    matched: dict[str, Any] = {}
    for stage in ("", "predict_"):
        wanted = kwargs.get(f"{stage}output_bands")
        stored = kwargs.get(f"{stage}dataset_bands") or kwargs.get("dataset_bands") or {}
        if isinstance(wanted, Mapping) and isinstance(stored, Mapping):
            matched[f"{stage}output_bands"] = {
                name: _match_bands(
                    f"{stage}output_bands", str(name), bands, stored.get(name), find(sources.get(str(name), str(name)))
                )
                for name, bands in wanted.items()
            }
    return matched


def _match_bands(argument: str, name: str, wanted: Any, stored: Any, modality: Modality | None) -> Any:
    """Return the bands of a modality under the names that dataset_bands uses."""
    if not wanted:
        return wanted
    if not stored:
        raise ConfigError(
            f"{argument} names bands of {name}, but dataset_bands does not, so the bands of the files are unknown. "
            f"Name all bands of the files, in their order, in dataset_bands: {{{name}: [...]}}."
        )
    known = list(generate_bands_intervals(list(stored)))
    places = [None if modality is None else modality.find_band(band) for band in known]
    result = []
    for band in generate_bands_intervals(list(wanted)):
        place = None if modality is None else modality.find_band(band)
        if band not in known and place is not None and place in places:
            band = known[places.index(place)]
        if band not in known and (place is not None or modality is None):
            raise ConfigError(
                f"{argument} of {name} has {band_text(band)}, which is none of dataset_bands: "
                f"{', '.join(map(band_text, known))}.{suggest(band_text(band), map(band_text, known))}"
            )
        result.append(band)
    return result


def bands_read(name: str, kwargs: Mapping[str, Any]) -> list[Any] | None:
    """Return the names of the model's bands, or None for all of the modality."""
    for key in ("output_bands", "dataset_bands"):
        bands = (kwargs.get(key) or {}).get(name)
        if bands is not None:
            return list(generate_bands_intervals(list(bands)))
    return None


def read_roots(key: str, roots: Any, modalities: Sequence[str], allow_missing: bool) -> Any:
    """Return the folders of the modalities in use; None for an optional modality without a folder.

    Raises:
        ConfigError: A modality has no folder.
    """
    if not isinstance(roots, Mapping):
        return roots if roots is None else str(roots)
    without = [name for name in modalities if name not in roots]
    if without and not (allow_missing and len(without) < len(modalities)):
        raise ConfigError(f"{key} has no folder for {', '.join(without)}; it has: {', '.join(map(str, roots))}.")
    return {name: roots.get(name) for name in modalities}


def kept_settings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say how files are read, without their paths, as plain values for a checkpoint.

    Args:
        kwargs: Arguments of the data module; bands may be members of TerraTorch's enums.
    """
    return {name: plain(kwargs[name]) for name in KEPT if kwargs.get(name) is not None}


def make_cache(folder: Path | str | None, gib: float) -> DecodedChips | None:
    """Return the cache of decoded chips; None if no folder is given.

    Args:
        folder: Folder of the cache, or None.
        gib: Maximum size in GiB.

    Raises:
        ConfigError: The folder is a file, or the maximum size is not above 0.
    """
    if not gib > 0:
        raise ConfigError(f"cache_gib must be above 0, got {gib}.")
    if folder is None:
        return None
    place = Path(folder).expanduser()
    if place.exists() and not place.is_dir():
        raise ConfigError(f"cache must be a folder, but {place} is a file. Name a folder, which may be new.")
    return DecodedChips(place, int(min(gib * 2**30, 2.0**62)))


def make_stand_ins(kwargs: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Any]:
    """Return placeholders for folders that the parent class requires and prediction does not need."""
    stand_ins: dict[str, Any] = {}
    for split in ("train", "val"):
        if kwargs.get(f"{split}_data_root") is None and kwargs.get("data_root") is None:
            stand_ins[f"{split}_data_root"] = dict.fromkeys(modalities, os.curdir)
        labels = kwargs.get(f"{split}_label_data_root") or kwargs.get("label_data_root")
        if kwargs.get("task") is not None and labels is None:
            stand_ins[f"{split}_label_data_root"] = os.curdir
    return stand_ins


def check_missing_options(kwargs: Mapping[str, Any], allow_missing: bool) -> None:
    """Raise an error if options contradict each other.

    Raises:
        ConfigError: Two options contradict each other; the message names them.
    """
    if allow_missing and kwargs.get("concat_bands"):
        raise ConfigError("allow_missing_modalities does not work with concat_bands. Set one of them to false.")


def settle_statistics(
    names: Sequence[str],
    bands: Mapping[str, list[Any] | None],
    means: Mapping[str, Sequence[float]] | None,
    stds: Mapping[str, Sequence[float]] | None,
    sources: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the mean and standard deviation of every band to read: the given ones, or else those of the table.

    Raises:
        ConfigError: A modality has no statistics, or a wrong number of them.
    """
    result: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for name in names:
        given = ((means or {}).get(name), (stds or {}).get(name))
        if None in given:
            table = _table_statistics(_known((sources or {}).get(name, name)), bands[name])
            given = (given[0] if given[0] is not None else table[0], given[1] if given[1] is not None else table[1])
        for target, values in zip(result, given, strict=True):
            target[name] = [float(value) for value in values or ()]
        count = None if bands[name] is None else len(bands[name] or ())
        lengths = (len(result[0][name]), len(result[1][name]))
        if lengths[0] != lengths[1] or count not in (None, lengths[0]):
            raise ConfigError(
                f"{name}: {lengths[0]} means and {lengths[1]} stds"
                + (f" for {count} bands" if count is not None else "")
                + ". Give one mean and one std for each band, or leave them out to use the pre-training ones."
            )
        if min(result[1][name]) <= 0:
            raise ConfigError(f"{name}: stds must be positive, got {result[1][name]}.")
    return result


def _known(name: str) -> Modality:
    try:
        return resolve(name)
    except ConfigError as error:
        raise ConfigError(
            f"{error} For a modality of your own, give its means and stds, or name the modality "
            f"whose bands it has: modalities: [{{{name}: S2L2A}}]."
        ) from None


def _table_statistics(modality: Modality, bands: list[Any] | None) -> tuple[list[float], list[float]]:
    if bands is None:
        return list(modality.mean), list(modality.std)
    try:
        return statistics(modality, bands)
    except ConfigError as error:
        raise ConfigError(f"{error} For bands of your own, give means and stds of {modality.name}.") from None


def find_rgb(name: str, bands: list[Any] | None) -> list[int]:
    """Return the positions of red, green and blue among the bands to read; otherwise that of the first band."""
    modality = find(name)
    if modality is None:
        return [0]
    if bands is None:
        return list(modality.rgb)
    positions = [modality.find_band(band) for band in bands]
    return [positions.index(i) for i in modality.rgb] if set(modality.rgb) <= set(positions) else [0]
