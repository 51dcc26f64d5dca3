"""Adds what stands elsewhere in the repository to the documentation: pages, notebooks, configurations, commands."""

from __future__ import annotations

import base64
import json
import os
import re
import textwrap
from html import escape
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
COPIED = ("configs/**/*.yaml", "results/*.png", "results/*.csv", "results/*.json", "LICENSE")
"""Files that pages show or link to."""
STOREYS = {
    "errors.py": "Foundations",
    "model": "The published model",
    "shards": "Files on disk",
    "sources": "Where data come from",
    "tokenizers": "Tokens",
    "backbones": "Backbones",
    "data": "What TerraTorch sees",
    "inference": "Work",
    "cli": "Command line",
}
"""Title of each storey of the house by its first room."""
NEEDS = "It needs `pip install 'terramind-plugin[notebooks]'`, and Jupyter or an editor that runs notebooks."
LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the copied files."""
    copied = {path.relative_to(ROOT).as_posix(): path for pattern in COPIED for path in sorted(ROOT.glob(pattern))}
    for name, path in copied.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=relink(text, PurePosixPath(source).parent, copied)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{path.stem}"
        text, pictures = notebook_page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        files.append(File.generated(config, f"{name}.md", content=text))
        files.append(File.generated(config, f"{name}.ipynb", abs_src_path=str(path)))
        for picture, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{picture}", content=content))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "house.svg", content=draw_house()))
    return files


def notebook_page(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if len(parts) == 1:
                parts.append(f"[Download the notebook]({stem}.ipynb). {NEEDS}")
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
                continue
            picture = f"{stem}_{len(pictures) + 1}.png"
            pictures[picture] = base64.b64decode(output["data"]["image/png"])
            parts.append(f"![picture {len(pictures)} of this notebook]({picture})")
    return "\n\n".join(parts) + "\n", pictures


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
    from terramind_plugin.cli.command import COMMANDS, Command
    from terramind_plugin.cli.dispatch import TERRATORCH_COMMANDS

    intro = (ROOT / "docs" / "commands.txt").read_text(encoding="utf-8")
    parts = [intro, "## TerraTorch's commands\n", "| command | what it does |", "|---|---|"]
    parts += [f"| `terramind {name}` | {text} |" for name, text in TERRATORCH_COMMANDS.items()]
    for name in COMMANDS:
        parts.append(f"\n## terramind {name}\n\n```text\n{Command(name).help().rstrip()}\n```")
    return "\n".join(parts) + "\n"


def draw_house() -> str:
    """Return a drawing of the package as a house: the rooms in the table of CONTRIBUTING.md, from the ground up."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `terramind_plugin/([\w.]+)/?` \| (.+?) \|$", table, re.MULTILINE)
    storeys: list[tuple[str, list[tuple[str, str]]]] = []
    for name, text in rooms:
        if name in STOREYS:
            storeys.append((STOREYS[name], []))
        storeys[-1][1].append((name, re.split("[:;]", text.replace("`", ""))[0]))
    width, height, gap, left = 1000, 86, 8, 130
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(storeys) * (height + gap) + gap}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, (title, names) in enumerate(reversed(storeys)):
        top, room = gap + number * (height + gap), (width - left) / len(names)
        for line, words in enumerate(textwrap.wrap(title, 17)):
            parts.append(
                f'<text x="8" y="{top + 20 + 15 * line}" font-weight="bold" fill="#2b7a6b">{escape(words)}</text>'
            )
        for column, (name, text) in enumerate(names):
            x = left + column * room
            parts.append(
                f'<rect x="{x:.0f}" y="{top}" width="{room - gap:.0f}" height="{height}" rx="5" fill="#e7f2ef" '
                'stroke="#2b7a6b"/>'
            )
            label = (
                f'<text x="{x + 8:.0f}" y="{top + 19}" font-weight="bold" font-size="14" fill="#1d2a33">{escape(name)}'
            )
            parts.append(f"{label}</text>")
            for line, words in enumerate(textwrap.wrap(text, int((room - 24) / 6), max_lines=4, placeholder=" ...")):
                y = top + 36 + 14 * line
                parts.append(f'<text x="{x + 8:.0f}" y="{y}" fill="#44525c">{escape(words)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
