"""The documentation builds without a warning, shows every command and public name at work, and its blocks run.

A comment above a block of code says what becomes of it: `run` (after the blocks before it, in one folder for all
pages), `run: PAGE` (after those of another page), `file: NAME` (written to that file, which a later block reads), or
`not run: REASON`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import terramind_plugin
from terramind_plugin.cli import COMMANDS, TERRATORCH_COMMANDS
from tests.house import ROOMS, ROOT

DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"run(: (?P<after>\w+))?")
FILE = re.compile(r"file: (?P<name>[\w./]+)")
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
WITHOUT_EXAMPLE = {
    "terramind verify": "compares the published weights, which are not here; tests/check has stand-ins for them",
}
"""Commands and public names that no block runs, and why."""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return mark, kind and code of each block of code of a page."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(match["mark"] or "", match["kind"], match["code"]) for match in found]


def at_work(page: Path) -> list[str]:
    """Return the blocks of a page that run, and the files that these read."""
    found = blocks(page)
    run = [code for mark, _, code in found if RUN.fullmatch(mark)]
    files = [(match["name"], code) for mark, _, code in found if (match := FILE.fullmatch(mark))]
    for name, _ in files:
        assert any(name in code for code in run), f"{page.name} writes {name}, but no block reads it"
    return [*run, *(code for _, code in files)]


RUNNABLE = [page.stem for page in PAGES if any(RUN.fullmatch(mark) for mark, _, _ in blocks(page))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built documentation; a warning is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    notebooks = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {"index.html", "commands.html", "traps.html", "benchmarks.html", *notebooks} <= pages
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert all(f"terramind {name}" in text for name in COMMANDS)
    outside = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""")
    for name in pages:
        assert not outside.search((site / name).read_text(encoding="utf-8")), f"{name} loads from the network"


def test_the_picture_of_the_house_shows_every_room(site):
    drawn = re.findall(r'font-size="14"[^>]*>([^<]+)<', (site / "house.svg").read_text(encoding="utf-8"))
    assert sorted(name.removesuffix(".py") for name in drawn) == sorted(ROOMS)


@pytest.mark.slow
def test_a_browser_finds_no_error_on_any_page(site):
    """Open each page from the disk: no error on the console, no request to another machine, no missing file.

    404.html is left out: only servers show it, and its links begin at the root of the server.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    problems = []
    with playwright.sync_playwright() as started:
        page = started.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.on("console", lambda message: message.type == "error" and problems.append((page.url, message.text)))
        page.on("pageerror", lambda error: problems.append((page.url, str(error))))
        page.on("requestfailed", lambda request: problems.append((page.url, request.url)))
        page.on("request", lambda one: one.url.startswith("http") and problems.append((page.url, one.url)))
        for path in sorted({*site.rglob("*.html")} - {site / "404.html"}):
            page.goto(path.as_uri())
            page.wait_for_timeout(100)  # scripts that start after the page
            assert page.title()
    assert not problems, problems[:5]


def test_the_api_page_lists_every_public_class():
    listed = set(re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    public = {f"{module}.{name}" for name, module in terramind_plugin._LAZY.items()}
    assert public <= listed, "in terramind_plugin, but not in docs/api.md"


def test_every_command_and_public_name_is_at_work_in_a_block_that_runs():
    code = "\n".join(text for page in PAGES for text in at_work(page))
    wanted = {
        **{f"terramind {name}": rf"\bterramind {name}\b" for name in (*TERRATORCH_COMMANDS, *COMMANDS)},
        **{name: rf"\bterramind_plugin\.{name}\b" for name in terramind_plugin.__all__},
    }
    missing = {name for name, pattern in wanted.items() if not re.search(pattern, code)}
    assert missing == set(WITHOUT_EXAMPLE), "give each an example in docs/ with a mark `run` or `file: NAME`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_script_is_run_or_says_why_not(page):
    for mark, kind, code in blocks(page):
        if kind in ("bash", "python"):
            assert RUN.fullmatch(mark) or mark.startswith("not run: "), f"no mark above:\n{code}"
        if kind == "yaml":
            assert not FILE.fullmatch(mark) or "..." not in code
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
            for mark, kind, code in blocks(next(page for page in PAGES if page.stem == name)):
                if match := FILE.fullmatch(mark):
                    (folder / match["name"]).write_text(code, encoding="utf-8")
                elif match := RUN.fullmatch(mark):
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
