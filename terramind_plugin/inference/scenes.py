"""Files of scenes as people type them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import find, resolve
from terramind_plugin.raster.paths import is_remote, raster_path


def pair_scenes(typed: Sequence[Sequence[str]], names: Sequence[str]) -> list[dict[str, Path]]:
    """Return the files of each scene by modality, the first modality typed in front.

    Args:
        typed: Files as in `map_scenes`.
        names: Modalities of the configuration.

    Raises:
        ConfigError: A modality is missing, unknown or given twice, or the numbers of files differ.
    """
    example = " ".join(f"--scene {name}=FILE" for name in names)
    files: dict[str, list[Path]] = {}
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
            raise ConfigError(f"{name} is given twice. Several scenes go behind one --scene: --scene {name}=A B C.")
        files[name] = [raster_path(path), *map(raster_path, others)]
    missing = [name for name in names if name not in files]
    if missing:
        raise ConfigError(f"No file for {', '.join(missing)}: write {example}.")
    counts = {name: len(paths) for name, paths in files.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(f"Each scene needs a file of each modality, got {counts}.")
    return [dict(zip(files, paths, strict=True)) for paths in zip(*files.values(), strict=True)]


def _match(given: str, names: Sequence[str]) -> str | None:
    """Return the configuration's spelling of a modality's name."""
    if given in names:
        return given
    if find(given) is None:
        return None
    return next((name for name in names if find(name) is resolve(given)), None)
