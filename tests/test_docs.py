"""The documentation builds without a warning, leaves no public name out, and its commands work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import terramind_plugin
from terramind_plugin.cli import COMMANDS
from tests.house import ROOT

DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"run(: (?P<after>\w+))?")
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return mark, kind and code of each block of code of a page."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(match["mark"] or "", match["kind"], match["code"]) for match in found]


RUNNABLE = [page.stem for page in PAGES if any(RUN.fullmatch(mark) for mark, _, _ in blocks(page))]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "commands.html", "traps.html", "benchmarks.html"} <= pages
    text = (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
    assert all(f"terramind {name}" in text for name in COMMANDS)
    outside = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""")
    for name in pages:
        assert not outside.search((tmp_path / "site" / name).read_text(encoding="utf-8")), (
            f"{name} loads from the network"
        )


def test_the_api_page_lists_every_public_class():
    listed = set(re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    public = {f"{module}.{name}" for name, module in terramind_plugin._LAZY.items()}
    assert public <= listed, "in terramind_plugin, but not in docs/api.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_script_is_run_or_says_why_not(page):
    for mark, kind, code in blocks(page):
        if kind in ("bash", "python"):
            assert RUN.fullmatch(mark) or mark.startswith("not run: "), f"no mark above:\n{code}"
        if kind == "yaml":
            assert yaml.safe_load(re.sub(r"\.\.\.", "x: y", code.replace("[..., ", "["))) is not None


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a function from a page to the folder in which its blocks have run."""
    folder, done = tmp_path_factory.mktemp("docs"), {}
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "bin").mkdir()
    for name, module in (("terramind", "terramind_plugin.cli"), ("python", "")):
        script = folder / "bin" / name
        script.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" {f"-m {module}" if module else ""} "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)

    def run(name: str) -> Path:
        if name not in done:
            done[name] = folder
            for mark, kind, code in blocks(DOCS / f"{name}.md"):
                match = RUN.fullmatch(mark)
                if match:
                    if match["after"]:
                        run(match["after"])
                    execute(folder, kind, code)
        return done[name]

    return run


def execute(folder: Path, kind: str, code: str) -> None:
    """Run a block of code in a folder."""
    command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE)
def test_the_blocks_of_a_page_run_in_their_order(page, places):
    assert places(page).is_dir()
