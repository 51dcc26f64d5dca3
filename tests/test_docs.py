"""The documentation builds without a warning, shows every command and public name at work, and its blocks run.

The marks above blocks are explained in `tests/blocks.py`, which runs blocks without pytest, too.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

import terramind_plugin
from terramind_plugin.cli.command import COMMANDS
from terramind_plugin.cli.dispatch import TERRATORCH_COMMANDS
from tests.blocks import FILE, PAGES, RUN, RUNNABLE, Runner, at_work, blocks
from tests.house import ROOMS, ROOT

DOCS = ROOT / "docs"


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
        page.goto((site / "notebooks" / "tokenizer.html").as_uri())
        page.keyboard.press("/")  # opens the search, which has to work from a disk
        page.keyboard.type("burn scars")
        found = page.locator(".md-search-result__link").first
        found.wait_for(timeout=20_000)
        assert (site / "notebooks" / "burn_scars.html").as_uri() in str(found.get_attribute("href"))
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
    assert not missing, "give each an example in docs/ with a mark `run` or `file: NAME`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_script_is_run_or_says_why_not(page):
    for mark, kind, code in blocks(page):
        if kind in ("bash", "python"):
            assert RUN.fullmatch(mark) or mark.startswith("not run: "), f"no mark above:\n{code}"
        if kind == "yaml":
            assert not FILE.fullmatch(mark) or "..." not in code
            assert yaml.safe_load(re.sub(r"\.\.\.", "x: y", code.replace("[..., ", "["))) is not None


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Return what runs the blocks of a page, in one folder for all pages."""
    return Runner(tmp_path_factory.mktemp("docs"))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE)
def test_the_blocks_of_a_page_run_in_their_order(page, runner):
    runner.page(page)
    assert page in runner.done
