"""Commands as users type them, in this process."""

from __future__ import annotations

from typing import Any

from terramind_plugin.cli import main


def refused(capsys: Any, *words: Any) -> str:
    """Return the message of a command that is refused, which is one line."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("terramind: ")]
    assert len(lines) == 1
    return lines[0]
