"""Configurations that ship with the package."""

from __future__ import annotations

import re
from pathlib import Path

import terramind_plugin
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.system.files import write_text

PACKAGE = Path(terramind_plugin.__file__).parent


def folder() -> Path:
    """Return the folder of the configurations, which is in the installed package, or beside it in a clone.

    Raises:
        ConfigError: There is none.
    """
    found = next((path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir()), None)
    if found is None:
        raise ConfigError(f"{PACKAGE} has no configurations: the package is not complete. Install it again.")
    return found


def list_configurations() -> dict[str, str]:
    """Return the first sentence of each configuration's header, by name."""
    root = folder()
    paths = sorted(root.rglob("*.yaml"), key=lambda path: (len(path.relative_to(root).parts), path))
    return {path.relative_to(root).with_suffix("").as_posix(): _title(path) for path in paths}


def _title(path: Path) -> str:
    """Return the text of the header before its first full stop, blank line or key such as 'Command:'."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text or re.match(r"[A-Z][a-z]+: ", text):
            break
        lines.append(text)
    return re.split(r"(?<=\.)\s", " ".join(lines))[0]


def copy_configuration(name: str, out: Path) -> None:
    """Write a copy of a configuration, whose header names the copy.

    Args:
        name: Name from `list_configurations`, with or without the ending .yaml.
        out: File to write.

    Raises:
        ConfigError: There is no such configuration.
    """
    known = list_configurations()
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    if wanted not in known:
        raise ConfigError(
            f"There is no configuration '{name}'.{suggest(wanted, known)} terramind new --list shows all of them."
        )
    text = (folder() / f"{wanted}.yaml").read_text(encoding="utf-8")
    write_text(out, text.replace(f"configs/{wanted}.yaml", str(out)))
