"""The `terramind` command: its own subcommands, and what it says when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terramind_plugin import __version__
from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.samples.splits import read_split
from terramind_plugin.simulation.dataset import simulate

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def _run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "terramind_plugin.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=120, check=False)


def test_help_is_quick_and_names_the_commands() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = _run("--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0
    for name in ("fit", "validate", "test", "predict", "compute_statistics", "simulate", "splits", "figure", "version"):
        assert f"\n    {name}" in result.stdout
    assert min(seconds) < 1


@pytest.mark.parametrize("words", [["--help"], ["version"], ["simulate", "--help"], ["splits", "--help"]])
def test_own_commands_load_neither_torch_nor_terratorch(words: list[str]) -> None:
    code = (
        "import sys\nfrom terramind_plugin.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'terratorch', 'lightning', 'rasterio'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_installed_command() -> None:
    command = Path(sys.executable).with_name("terramind")
    if not command.exists():
        pytest.skip("the package is not installed with its scripts")
    result = subprocess.run([command, "version"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == f"terramind {__version__}\n"


def test_no_words_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: terramind" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.splitlines() == [f"terramind {__version__}"] * 2


@pytest.mark.parametrize("words", [["simulat"], ["simulate"], ["simulate", "--out", "x", "--chips", "three"]])
def test_wrong_words_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    words = ["simulate", "--out", str(out), "--chips", "4", "--size", "32", "--seed", "3"]
    assert main(words) == 0
    assert "4 chips (2 train, 1 valid, 1 test)" in capsys.readouterr().out.replace("\n", " ")
    assert len(list((out / "data" / "S2L1CHand").iterdir())) == 4
    assert main(words) == 0  # again: nothing to do
    assert main([*words[:-1], "4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("terramind: ")
    assert "already holds a data set" in error


@pytest.mark.parametrize("option", [("--chips", "2"), ("--size", "8"), ("--seed", "-1")])
def test_simulate_refuses(tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--out", str(tmp_path / "data"), *option]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "csv"
    source.mkdir()
    (source / "flood_test_data.csv").write_text("Ghana_103272_S1Hand.tif,Ghana_103272_LabelHand.tif\n")
    assert main(["splits", "--csv-dir", str(source), "--out", str(tmp_path / "out")]) == 0
    written = tmp_path / "out" / "flood_test_data.txt"
    assert capsys.readouterr().out.split() == [str(written)]
    assert read_split(written) == ["Ghana_103272"]
    assert main(["splits", "--csv-dir", str(tmp_path), "--out", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("terramind: No Sen1Floods11 list in")
    assert error.count("\n") == 1


def test_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = simulate(tmp_path / "data", chips=3, size=32).root / "data"
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for path in (data / "LabelHand").iterdir():
        (predictions / path.name.replace("_LabelHand", "_S2Hand_pred")).write_bytes(path.read_bytes())
    out = tmp_path / "pictures" / "figure.png"
    words = ["figure", "--data", str(data), "--predictions", str(predictions), "--out", str(out)]
    assert main([*words, "--chips", "2"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in out.parent.iterdir()] == ["figure.png"]
    assert main([*words, "--chips", "0"]) == 2
    assert "chips must be at least 1" in capsys.readouterr().err
    assert main([*words[:4], str(tmp_path / "none"), *words[5:]]) == 2
    assert "No prediction in" in capsys.readouterr().err


def test_messages_from_worker_processes_lose_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from terramind_plugin.cli import _run

    def fail() -> None:
        raise DataError(
            "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "  File somewhere\nterramind_plugin.errors.DataError: a.tif cannot be read.\n"
        )

    assert _run(fail) == 2
    assert capsys.readouterr().err.strip() == "terramind: a.tif cannot be read."


def test_other_errors_are_not_hidden() -> None:
    from terramind_plugin.cli import _run

    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        _run(fail)
    assert issubclass(ConfigError, ValueError)
