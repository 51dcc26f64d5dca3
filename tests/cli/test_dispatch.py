"""The `terramind` command: its own subcommands, and what it says when something is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from terramind_plugin import __version__
from terramind_plugin.cli.command import COMMANDS, Command
from terramind_plugin.cli.dispatch import TERRATORCH_COMMANDS, TERRATORCH_HELP, _status, main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.evaluate.arms import ARMS
from terramind_plugin.raster.paths import RemotePath
from terramind_plugin.samples.layout import read_split
from terramind_plugin.simulation.dataset import simulate
from terramind_plugin.system.process import Stopped, StopSignals

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def _run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "terramind_plugin.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=120, check=False)


def test_help_is_quick_and_names_the_commands() -> None:
    before = os.times().children_user
    result = _run("--help")
    assert os.times().children_user - before < 1  # seconds of a processor, whatever else runs here
    assert result.returncode == 0
    for name in (*TERRATORCH_COMMANDS, *COMMANDS, "version"):
        assert f"\n    {name} " in result.stdout


@pytest.mark.parametrize(
    "words", [["--help"], ["version"], *([name, "--help"] for name in (*COMMANDS, *TERRATORCH_COMMANDS))]
)
def test_help_loads_neither_torch_nor_terratorch(words: list[str]) -> None:
    code = (
        "import sys\nfrom terramind_plugin.cli import main\n"
        f"assert main({words}) == 0\n"
        "print(sorted({'torch', 'terratorch', 'lightning', 'rasterio', 'numpy'} & set(sys.modules)))"
    )
    before = os.times().children_user
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert os.times().children_user - before < 1  # seconds of a processor, whatever else runs here


@pytest.mark.slow
def test_the_short_help_names_options_that_there_are() -> None:
    result = _run("predict", "--help_all")
    assert result.returncode == 0
    for option in re.findall(r"^  .*?(--[a-z_.]+)[ ,]", TERRATORCH_HELP, re.MULTILINE):
        assert option == "--help_all" or option in result.stdout, option


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_each_option(name: str) -> None:
    command = Command(name)
    text = command.help()
    assert text.startswith(f"usage: terramind {name} ")
    for action in command.parser._actions:
        if action.dest in command.types:
            assert action.help is not None, f"{name}: {action.dest} is not in the docstring"
            assert " ".join(action.help.split(" (")[0].split()) in " ".join(text.split()), action.dest
    assert ("Options of terramind fit may follow" in text) == (command.takes_overrides)


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
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"terramind {__version__}"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    {
        "simulat": "There is no command 'simulat'. Did you mean 'simulate'?",
        "simulate": "--out PATH is missing.",
        "merge": "--model PATH and --out PATH are missing.",
        "localise": "CHIPS, --modality NAME and --out PATH are missing.",
        "simulate --out x --chips three": "--chips takes a whole number, got 'three'.",
        "simulate --out x --world glob": "--world takes one of floods, globe, stac, got 'glob'. Did you mean 'globe'?",
        "simulate --out x --chip 3": "There is no option --chip. Did you mean '--chips'?",
        "simulate --out": "--out needs a value: --out PATH.",
        "simulate --out x --config no.yaml": "There is no configuration no.yaml.",
        "simulate -o x": "There is no option -o.",
        "simulate x": "Unexpected 'x'.",
        "check -c x.yaml -c y.yaml": "check takes one --config, got x.yaml and y.yaml. Where these",
        "check -c x.yaml --sample 3": "There is no option --sample. Did you mean '--samples'?",
        "check -c x.yaml --strict=3": "--strict takes true or false, got '3'.",
        "tokenize --data S2L2A --out x": "--data takes NAME=FILE, got 'S2L2A'.",
        "zero-shot -c x.yaml --tokenizer_ckpt_path LULC": "--tokenizer_ckpt_path takes NAME=FILE, got 'LULC'.",
        "few-shot a b --modality S2L2A --out x": "Unexpected 'b': this command takes one PATCHES.",
        "localise a.tif --modality S2L2A --out x --model": "--model needs a value: --model NAME.",
        "tokenize --data A=b --data A=c --out x": "--data names A twice.",
        "splits --csv-dir a --out b": "--csv-dir is now --csv_dir: --csv_dir a",
        "figure --class-names=A,B": "--class-names is now --class_names: --class_names A,B",
        "generate a.tif --size nano": "--size is now --model: --model terramind_sim_nano",
        "reconstruct a.tif --modality S2L2A --out x --pretrained=not": "--pretrained takes true or false, got 'not'.",
        "reconstruct a.tif --modality S2L2A --out x --model base": "Did you mean 'terramind_v1_base'?",
        "tokenize --family terramind_v1": "--family is now --model: --model terramind_v1_base",
        "tokenize --turns 1": "--turns is now --symmetries: --symmetries 1",
        "tokenize --ckpt_path A=b": "--ckpt_path is now --tokenizer_ckpt_path: --tokenizer_ckpt_path A=b",
        "merge best.ckpt --out x": "A checkpoint is now given as --model: --model best.ckpt.",
        "export last.ckpt --out x": "A checkpoint is now given as --model: --model last.ckpt.",
    }.items(),
)
def test_wrong_words_exit_with_2(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("terramind: ")
    assert message in error
    assert error.count("\n") == 1


def everything(
    scene: list[RemotePath | Path],
    *,
    out: Path,
    to: list[str],
    shared: Shared,
    inputs: dict[str, str] | None = None,
    sets: list[list[str]] | None = None,
    seed: int = 0,
    cog: bool = False,
    pretrained: bool = True,
) -> None:
    """Take an argument of each kind."""
    TAKEN.update(locals())


def overridden(*, config: Path, scene: list[list[Path]], names: list[str], overrides: list[str]) -> None:
    """Take options of TerraTorch."""
    TAKEN.update(locals())


@dataclass
class Shared:
    """Shared options.

    Args:
        crop: Height and width of a window.
        precision: Type of numbers.
    """

    crop: int | None = None
    precision: Literal["32", "bf16"] = "32"


TAKEN: dict[str, Any] = {}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what gives the arguments of a function that words stand for."""

    def take(function: Callable[..., None], *words: str) -> dict[str, Any]:
        monkeypatch.setattr("terramind_plugin.cli.command.load_command", lambda name: function)
        TAKEN.clear()
        Command("everything").read(words)()
        return TAKEN

    return take


MINIMUM = ("--out", "x", "--to", "S1GRD, LULC")


def test_lists_pairs_and_groups_as_they_are_typed(taken: Callable[..., dict[str, Any]]) -> None:
    made = taken(everything, "a.tif", "https://host/b.tif", *MINIMUM)
    assert made["scene"] == [Path("a.tif"), RemotePath("https://host/b.tif")]
    assert str(made["scene"][1]) == "https://host/b.tif"
    assert (made["to"], made["shared"], made["inputs"], made["seed"]) == (["S1GRD", "LULC"], Shared(), None, 0)
    words = ("--inputs", "S1GRD=b.tif", "--inputs=coords=11.5,48", "--to", "1", "--seed", "-1", "--crop", "64")
    made = taken(everything, *MINIMUM, *words, "--cog", "a.tif", "--pretrained", "false", "--precision=bf16")
    assert made["inputs"] == {"S1GRD": "b.tif", "coords": "11.5,48"}
    assert (made["to"], made["seed"], made["shared"]) == (["S1GRD", "LULC", "1"], -1, Shared(64, "bf16"))
    assert (made["cog"], made["pretrained"], made["scene"]) == (True, False, [Path("a.tif")])
    sets = taken(everything, "a.tif", *MINIMUM, "--sets", "S2L1C,S1GRD", "--sets", "S1GRD")["sets"]
    assert sets == [["S2L1C", "S1GRD"], ["S1GRD"]]


def test_lists_without_a_positional_take_all_words(taken: Callable[..., dict[str, Any]]) -> None:
    words = "--scene S2L1C=a,1.tif b.tif --trainer.max_epochs 3 -c x.yaml --scene S1GRD=c.tif --data.x=[1,2]"
    made = taken(overridden, *words.split(), "--names", "a", "b,c")
    assert made["scene"] == [[Path("S2L1C=a,1.tif"), Path("b.tif")], [Path("S1GRD=c.tif")]]
    assert (made["config"], made["names"]) == (Path("x.yaml"), ["a", "b", "c"])
    assert made["overrides"] == ["--trainer.max_epochs", "3", "--data.x=[1,2]"]


def test_a_file_of_arguments(taken: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "generate.yaml"
    path.write_text(
        "scene: [a.tif, b.tif]\nout: x\nto: S1GRD,LULC\ncrop: 64\nseed: 3\ninputs: {S1GRD: c.tif}\ncog: true"
    )
    made = taken(everything, "-c", str(path))
    assert made["scene"] == [Path("a.tif"), Path("b.tif")]
    assert (made["to"], made["shared"], made["seed"]) == (["S1GRD", "LULC"], Shared(64), 3)
    assert (made["inputs"], made["cog"]) == ({"S1GRD": "c.tif"}, True)
    made = taken(everything, "c.tif", "--seed", "4", "--config", str(path), "--cog", "false")
    assert (made["scene"], made["seed"], made["cog"], made["out"]) == ([Path("c.tif")], 4, False, Path("x"))
    for text, message in (
        ("sead: 3", "generate.yaml: there is no option 'sead'. Did you mean 'seed'?"),
        ("seed: many", "generate.yaml: seed takes a whole number, got 'many'."),
        ("- seed", "must hold the names and values of options"),
        ("seed: [", "is not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            taken(everything, "a.tif", *MINIMUM, "-c", str(path))
        assert message in str(caught.value)


def test_help_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terramind_plugin.cli.command.load_command", lambda name: everything)
    text = Command("everything").help()
    assert text.startswith("usage: terramind everything SCENE ... --out PATH --to NAMES [options]")
    for line in ("Shared options:", "--crop N ", "--inputs NAME=FILE", "--pretrained true|false", "--cog\n"):
        assert line in text
    assert "Type of numbers (default: 32)" in " ".join(text.split())


def test_compare_explains_its_arms() -> None:
    assert all(f" {name}, " in " ".join(Command("compare").help().split()) for name in ARMS)


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
    assert main(["splits", "--csv_dir", str(source), "--out", str(tmp_path / "out")]) == 0
    written = tmp_path / "out" / "flood_test_data.txt"
    assert capsys.readouterr().out.split() == [str(written)]
    assert read_split(written) == ["Ghana_103272"]
    assert main(["splits", "--csv_dir", str(tmp_path), "--out", str(tmp_path / "no")]) == 2
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
    from terramind_plugin.cli.dispatch import _run

    def fail() -> None:
        raise DataError(
            "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "  File somewhere\nterramind_plugin.errors.DataError: a.tif cannot be read.\n"
        )

    assert _run(fail) == 2
    assert capsys.readouterr().err.strip() == "terramind: a.tif cannot be read."


def test_other_errors_are_not_hidden() -> None:
    from terramind_plugin.cli.dispatch import _run

    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        _run(fail)
    assert issubclass(ConfigError, ValueError)


def test_what_breaks_after_a_signal_is_no_fault_of_the_program() -> None:
    def lose_worker() -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    signals = StopSignals()
    with pytest.raises(RuntimeError):
        _status(lose_worker, signals)
    signals.number = 15
    with pytest.raises(Stopped):
        _status(lose_worker, signals)
