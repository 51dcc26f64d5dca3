"""Parsing of the files of scenes, as typed on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import find, resolve
from terramind_plugin.raster.paths import is_remote, raster_path


def pair_series(
    typed: Sequence[Sequence[str]], names: Sequence[str], *, dated: bool
) -> list[dict[str, tuple[Path, ...]]]:
    """Return the files of each scene by modality, in the order of time. The modality typed first comes first.

    Args:
        typed: Files as in `map_scenes`; those of a series are separated by commas.
        names: Modalities of the configuration.
        dated: Whether the configuration has series.

    Raises:
        ConfigError: A modality is missing, unknown or given twice, the numbers of files differ, or there are several
            dates without a series.
    """
    example = " ".join(f"--scene {name}=FILE" for name in names)
    files: dict[str, list[tuple[Path, ...]]] = {}
    for first, *others in typed:
        given, equals, path = first.partition("=")
        if is_remote(given):  # the query of a URL may have an equals sign
            given, equals, path = "", "", first
        if not equals and len(names) == 1:
            given, path = names[0], first
        name = _match(given, names) if equals or len(names) == 1 else None
        if name is None:
            raise ConfigError(f"The configuration has {', '.join(names)}: write {example}, got '{first}'.")
        if name in files:
            raise ConfigError(
                f"{name} is given twice. For several scenes write --scene {name}=A B C"
                + (f", for the dates of one scene --scene {name}=A,B,C." if dated else ".")
            )
        files[name] = [_split(one, dated) for one in (path, *others)]
    missing = [name for name in names if name not in files]
    if missing:
        raise ConfigError(f"No file for {', '.join(missing)}: write {example}.")
    counts = {name: len(paths) for name, paths in files.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(f"Each scene needs a file of each modality, got {counts}.")
    return [dict(zip(files, paths, strict=True)) for paths in zip(*files.values(), strict=True)]


def _split(text: str, dated: bool) -> tuple[Path, ...]:
    """Return the files of one scene. The name of an existing file or a URL is one file, even if it contains commas."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 or Path(text).exists() or (is_remote(text) and not all(is_remote(part) for part in parts)):
        return (raster_path(text),)
    if not all(parts):
        raise ConfigError(f"'{text}' has a comma without a file on both sides. Write A,B,C for the dates of a scene.")
    if not dated:
        raise ConfigError(
            f"'{text}' lists {len(parts)} dates, but the configuration has one. Set expand_temporal_dimension: true in "
            "the configuration of a series; several scenes are separated by spaces."
        )
    return tuple(map(raster_path, parts))


def name_scenes(
    scenes: Sequence[Path],
    modality: str | None,
    typed: Sequence[Sequence[Path | str]],
    known: Sequence[str] = (),
) -> list[dict[str, tuple[Path, ...]]]:
    """Return the files of each scene by modality, in the order of time, for commands without a configuration.

    Args:
        scenes: Rasters of one modality; those of a series are separated by commas.
        modality: Name of that modality.
        typed: Instead of `scenes`: for each modality NAME=FILE and the files of further scenes, in the same order. A
            modality may be given several times.
        known: Names of the inputs of a fine-tuned model.

    Raises:
        ConfigError: A name is missing or unknown, or the numbers of files differ.
    """
    if scenes and typed:
        raise ConfigError(f"{scenes[0]} has no name. Give scenes either as FILE ... --modality NAME, or with --scene.")
    if not scenes and not typed:
        raise ConfigError("There is no scene: give FILE ... --modality NAME, or --scene NAME=FILE for each modality.")
    if modality is None and len(known) == 1:
        modality = known[0]
    if scenes:
        if modality is None:
            raise ConfigError("--modality NAME is missing: the modality of the scenes, e.g. S2L2A.")
        name = name_modality(modality, known)
        return [{name: _split(str(path), True)} for path in scenes]
    files: dict[str, list[str]] = {}
    for first, *others in typed:
        given, equals, path = str(first).partition("=")
        if is_remote(given):
            given, equals, path = "", "", str(first)
        if not equals and modality is not None:
            given, path = modality, str(first)
        elif not equals:
            raise ConfigError(f"--scene needs the name of a modality: --scene S2L2A={first}.")
        files.setdefault(name_modality(given, known), []).extend([path, *map(str, others)])
    return pair_series([[f"{name}={paths[0]}", *paths[1:]] for name, paths in files.items()], list(files), dated=True)


def name_modality(given: str, known: Sequence[str] = ()) -> str:
    """Return the name of an input: the one in a fine-tuned model, or else the one in the modality table.

    Raises:
        ConfigError: There is no such modality.
    """
    return _match(given, known) or resolve(given).name


def name_bands(words: Sequence[str], modalities: Iterable[str]) -> dict[str, list[str]]:
    """Return the bands of each modality from a list of names of bands, in which NAME=BAND starts another modality.

    Args:
        words: Names as in ['BLUE', 'RED', 'S1GRD=VV']; those before the first '=' belong to the first modality.
        modalities: Names of the modalities.

    Raises:
        ConfigError: There is no such modality.
    """
    known = list(modalities)
    name, bands = known[0], dict[str, list[str]]()
    for word in words:
        given, equals, band = word.rpartition("=")
        found = _match(given, known) if equals else name
        if found is None:
            raise ConfigError(f"--bands names {given}, but the scenes show {', '.join(known)}.")
        name = found
        bands.setdefault(name, []).append(band)
    return bands


def _match(given: str, names: Sequence[str]) -> str | None:
    """Return the configuration's spelling of a modality's name."""
    if given in names:
        return given
    if find(given) is None:
        return None
    same = [name for name in names if find(name) is resolve(given)]
    return same[0] if len(same) == 1 else None
