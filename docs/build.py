"""Adds what stands elsewhere in the repository to the documentation: pages, configurations, pictures, commands."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "TRAPS.md": "traps.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "bench/README.md": "benchmarks.md",
    "data_splits/README.md": "data_splits.md",
    "terramind_plugin/shipped/README.md": "small_model_card.md",
}
"""Page of the documentation by file of the repository."""
SITE = {**PAGES, "README.md": "index.md"}
COPIED = ("configs/**/*.yaml", "results/*.png", "results/*.json", "LICENSE")
"""Files that pages show or link to."""
LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the copied files."""
    copied = {path.relative_to(ROOT).as_posix(): path for pattern in COPIED for path in sorted(ROOT.glob(pattern))}
    for name, path in copied.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=relink(text, PurePosixPath(source).parent, copied)))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def relink(text: str, folder: PurePosixPath, copied: Any) -> str:
    """Return a page whose links lead to pages and files of the documentation; other links become plain text."""

    def replace(match: re.Match[str]) -> str:
        target = match.group(2)
        if re.match(r"[a-z]+:", target):
            return match.group()
        path = os.path.normpath(folder / target)
        place = SITE.get(path, path if path in copied or path.startswith("docs/") else None)
        return f"](#) `{path}`" if place is None else f"{match.group(1)}{place.removeprefix('docs/')}{match.group(3)}"

    return re.sub(r"\[([^\]]*)\]\(#\) `[^`]*`", r"\1", LINK.sub(replace, text))


def commands() -> str:
    """Return the page of commands: what `terramind COMMAND --help` prints, for each."""
    os.environ["COLUMNS"] = "100"
    from terramind_plugin.cli import COMMANDS, TERRATORCH_COMMANDS, Command

    intro = (ROOT / "docs" / "commands.txt").read_text(encoding="utf-8")
    parts = [intro, "## TerraTorch's commands\n", "| command | what it does |", "|---|---|"]
    parts += [f"| `terramind {name}` | {text} |" for name, text in TERRATORCH_COMMANDS.items()]
    for name in COMMANDS:
        parts.append(f"\n## terramind {name}\n\n```text\n{Command(name).help().rstrip()}\n```")
    return "\n".join(parts) + "\n"
