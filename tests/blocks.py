"""The blocks of code of README and docs: `python -m tests.blocks [PAGE ...] [--out DIR]` runs them as a reader would.

A comment above a block of code says what becomes of it: `run` (after the blocks before it, in one folder for all
pages), `run: PAGE` (after those of another page), `run with random weights` (which stand in a hub's cache for the
published ones), `file: NAME` (written to that file, which a later block reads), or `not run: REASON`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.house import ROOT

BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"run(?P<hub> with random weights)?(: (?P<after>\w+))?")
FILE = re.compile(r"file: (?P<name>[\w./]+)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT = 3600
"""Seconds after which a block is stopped."""


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


@dataclass
class Runner:
    """One folder in which the blocks of all pages run, each page once, with this Python's `terramind` in front."""

    folder: Path
    loud: bool = False
    """True prints each block, what it printed, and its seconds."""
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        (self.folder / "bin").mkdir()
        for name, module in (("terramind", "-m terramind_plugin.cli"), ("python", "")):
            script = self.folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
            script.chmod(0o755)

    def page(self, name: str) -> None:
        """Run the blocks of a page, after those of the pages that it names, unless they have run."""
        if name in self.done:
            return
        self.done.add(name)
        for mark, kind, code in blocks(next(page for page in PAGES if page.stem == name)):
            if match := FILE.fullmatch(mark):
                (self.folder / match["name"]).write_text(code, encoding="utf-8")
            elif match := RUN.fullmatch(mark):
                if match["after"]:
                    self.page(match["after"])
                if match["hub"] and not (self.folder / "hub").exists():
                    self.execute(name, "bash", "python -m tests.hub hub")
                self.execute(name, kind, code)

    def execute(self, page: str, kind: str, code: str) -> None:
        """Run one block; a failure is an AssertionError with the block and the end of what it printed."""
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        paths = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **paths, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(self.folder / "hub")}
        start = time.monotonic()
        if self.loud:
            print(f"\n=== {page}\n{code}---", flush=True)
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        if self.loud:
            print(f"{done.stdout}--- status {done.returncode}, {time.monotonic() - start:.1f} s", flush=True)
        assert done.returncode == 0, f"{page}: status {done.returncode} of\n{code}\n{done.stdout[-5000:]}"


def main() -> int:
    """Run the blocks of all or of some pages, print what they print, and return 1 if a block of a page fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", choices=[[], *RUNNABLE], metavar="PAGE", help=f"of {', '.join(RUNNABLE)}")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "blocks", help="a new folder to run in")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    runner, failed = Runner(args.out.resolve(), loud=True), []
    for name in args.pages or RUNNABLE:
        try:
            runner.page(name)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed.append(name)
            print(f"!!! {name}: {str(error).splitlines()[0]}", flush=True)
    print(f"\n{len(runner.done)} pages, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
