"""`make demo` and `make test` install what they need, PyTorch from another index if asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest

ROOT = Path(__file__).parents[2]


def planned(target: str, folder: Path, *words: str) -> str:
    """Return the commands that make would run in a fresh clone."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    command = ["make", "-n", target, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_demo_installs_no_tools_of_developers(tmp_path):
    text = planned("demo", tmp_path)
    assert "install --quiet --progress-bar off torch torchvision" in text
    assert "--quiet --progress-bar off -e . " in text
    assert "[dev]" not in text
    assert "--index-url" not in text
    assert ".[dev]" in planned("test", tmp_path)
    assert ".[sources]" in planned("demo-region", tmp_path)


def test_each_step_says_what_and_how_big_and_how_long(tmp_path):
    for target, steps in (("demo", 2), ("test", 3)):
        lines = [line for line in planned(target, tmp_path).splitlines() if line.startswith('echo "  ')]
        said = [line for line in lines if line.endswith(' ..."')]
        assert len(said) == steps
        assert all(" GB to download, " in line and "minute" in line for line in said)


def test_torch_comes_from_another_index(tmp_path):
    """Pip takes stand-ins for PyTorch from an index on disk, by the words that make gives it."""
    pytest.importorskip("pip")
    index = tmp_path / "index"
    for name in ("torch", "torchvision"):
        write_wheel(index / name, name)
    text = planned("demo", tmp_path, f"TORCH_INDEX={index.as_uri()}")
    (line,) = [line for line in text.splitlines() if "--index-url" in line]
    words = line.partition(" install ")[2].partition(" && ")[0].split()
    assert words[-2:] == ["torch", "torchvision"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        *words,
        "-d",
        str(tmp_path / "got"),
    ]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | {
        "PIP_CONFIG_FILE": os.devnull
    }
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=own)
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == [
        "torch-99.0+cpu-py3-none-any.whl",
        "torchvision-99.0+cpu-py3-none-any.whl",
    ]


def write_wheel(folder: Path, name: str) -> None:
    """Write an empty package, and the page of a simple index that links to it."""
    folder.mkdir(parents=True)
    wheel = f"{name}-99.0+cpu-py3-none-any.whl"
    info = f"{name}-99.0+cpu.dist-info"
    with zipfile.ZipFile(folder / wheel, "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0+cpu\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{quote(wheel)}">{wheel}</a>', encoding="utf-8")
