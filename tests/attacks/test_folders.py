"""A folder that cannot be made: every command ends with one line that says which and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.attacks.writing import COMMANDS, Inputs, call

QUICK = ("simulate", "splits", "figure", "export")
"""Commands that need neither a model nor TerraTorch."""
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name not in QUICK]


def _make(kind: str, folder: Path) -> Path:
    """Return a folder that cannot be made."""
    (folder / "file").write_text("mine")
    (folder / "link").symlink_to(folder / "nowhere" / "else")
    return {
        "below a file": folder / "file" / "out",
        "a file": folder / "file",
        "a broken link": folder / "link",
        "below a broken link": folder / "link" / "out",
        "a name too long": folder / ("n" * 300),
        "no place of users": Path("/proc/1/out"),
    }[kind]


KINDS = ("below a file", "a file", "a broken link", "below a broken link", "a name too long", "no place of users")


@pytest.mark.parametrize("command", [*QUICK, *SLOW])
def test_one_line_says_why(command: str, request: Any, tmp_path: Path, capfd: Any) -> None:
    inputs: Inputs = request.getfixturevalue("few_inputs" if command in QUICK else "inputs")
    for kind in KINDS:
        if command == "compare" and "link" in kind:
            continue  # it follows the link and makes the folder there
        folder = tmp_path / kind
        folder.mkdir()
        out = _make(kind, folder)
        status = call(inputs.words(command, out))
        error = capfd.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("terramind: ")]
        assert "Traceback" not in error, (kind, error)
        assert status == 2, (kind, error)
        assert str(out) in lines[-1] or str(out.parent) in lines[-1] or "/proc" in lines[-1], (kind, lines)
        assert sorted(path.name for path in folder.iterdir()) == ["file", "link"], kind
        assert (folder / "file").read_text() == "mine"
