"""The `terramind` command: TerraTorch's subcommands with this package loaded, and the commands of this package."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from terramind_plugin._version import __version__
from terramind_plugin.cli.command import COMMANDS, Command, load_command
from terramind_plugin.errors import ConfigError, report, suggest
from terramind_plugin.system.process import Stopped, StopSignals, end_with_parent, exit_status, is_further_rank

TERRATORCH_COMMANDS = {
    "fit": "Fine-tune a model.",
    "validate": "Run a model on the validation data.",
    "test": "Run a model on the test data.",
    "predict": "Write predictions as GeoTIFFs.",
    "compute_statistics": "Print mean and standard deviation of the training data, by modality and band.",
}
TERRATORCH_HELP = """usage: terramind {name} -c YAML [options]

{text} This is TerraTorch's command with this package loaded.

options:
  -h, --help                  show this help message and exit
  --help_all                  show every option; this loads TerraTorch, which takes a while
  -c YAML, --config YAML      configuration; values of a later one replace those of an earlier one
  --KEY=VALUE                 value for a key, e.g. --trainer.max_epochs=5 or --data.init_args.batch_size=4
  --ckpt_path PATH            checkpoint; fit resumes it, validate, test and predict load it
  --predict_output_dir PATH   folder that predict writes to
  --print_config              print the whole configuration with defaults, and exit
  --data.help CLASS           show the arguments of a class, e.g. terramind_plugin.TerraMindDataModule"""
"""Short help of TerraTorch's commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: Arguments of the command line; None for those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if is_further_rank():
        end_with_parent(os.getppid())
    return _run(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> None:
    name, *rest = words or ["--help"]
    if name in TERRATORCH_COMMANDS and {"-h", "--help"} & set(rest):
        print(TERRATORCH_HELP.format(name=name, text=TERRATORCH_COMMANDS[name]))
    elif name in TERRATORCH_COMMANDS or name in ("-c", "--config", "--print_config"):
        from terramind_plugin.integration.lightning_cli import run

        run(["--help" if word == "--help_all" else word for word in words])
    elif name in COMMANDS:
        command = Command(name)
        if {"-h", "--help"} & set(rest):
            print(command.help())
        else:
            command.read(rest)()
    elif name in ("-h", "--help"):
        print(_overview())
    elif name in ("--version", "version"):
        print(f"terramind {__version__}")
    else:
        near = suggest(name, [*TERRATORCH_COMMANDS, *COMMANDS, "version"])
        raise ConfigError(f"There is no command '{name}'.{near} See terramind --help.")


def _run(command: Callable[[], None]) -> int:
    """Run a command, and return 143 if SIGTERM has stopped it, 130 if it was Ctrl-C."""
    try:
        with StopSignals() as signals:
            status = _status(command, signals)
            signals.check()  # Lightning only records SIGTERM, and may finish normally
            return status
    except Stopped as stopped:
        print(f"terramind: stopped by {signal.Signals(stopped.number).name}.", file=sys.stderr)
        return exit_status(stopped.number)


def _status(command: Callable[[], None], signals: StopSignals) -> int:
    try:
        command()
    except Exception as error:
        try:
            return report(error)
        except Exception:  # a signal also stops the workers of data loaders, each of which raises an error
            signals.check()
            raise
    return 0


def _overview() -> str:
    """Return the help of `terramind` itself."""
    own = {name: (load_command(name).__doc__ or "").split("\n")[0] for name in COMMANDS}
    parts = [
        "usage: terramind [-h] [--version] COMMAND ...\n\nTerraMind for TerraTorch: fine-tuning, data and tools.\n"
    ]
    for title, texts in (
        ("TerraTorch's commands, with this package loaded", TERRATORCH_COMMANDS),
        ("commands", own | {"version": "Print the version."}),
    ):
        parts.append(f"{title}:\n" + "".join(f"    {name:<20}{text}\n" for name, text in texts.items()))
    return "\n".join([*parts, "terramind COMMAND --help shows the options of a command."])
