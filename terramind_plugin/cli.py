"""The `terramind` command: TerraTorch's subcommands with this package loaded, and commands of its own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from terramind_plugin._version import __version__
from terramind_plugin.check import commands as check
from terramind_plugin.errors import report
from terramind_plugin.evaluate import commands as evaluate
from terramind_plugin.inference import commands as chips
from terramind_plugin.inference import map_commands as mapping
from terramind_plugin.pretrain import commands as pretrain
from terramind_plugin.system import Stopped, StopSignals, end_with_parent, exit_status, is_further_rank

TERRATORCH_COMMANDS = {
    "fit": "fine-tune a model",
    "validate": "run a model on the validation data",
    "test": "run a model on the test data",
    "predict": "write predictions as GeoTIFFs",
    "compute_statistics": "print mean and standard deviation of the training data, by modality and band",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: Words of the command line; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if is_further_rank():
        end_with_parent(os.getppid())
    if words and (words[0] in TERRATORCH_COMMANDS or words[0] in ("-c", "--config", "--print_config")):
        return _run(lambda: _terratorch(words))
    parser = build_parser()
    options, rest = parser.parse_known_args(words)
    if rest and not hasattr(options, "words"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.words = rest
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    return _run(lambda: options.run(options))


def _run(command: Callable[[], None]) -> int:
    """Run a command, and return 143 if SIGTERM has stopped it, 130 if it was Ctrl-C."""
    try:
        with StopSignals() as signals:
            status = _status(command)
            signals.check()  # Lightning notes SIGTERM, and may have come to its end all the same
            return status
    except Stopped as stopped:
        print(f"terramind: stopped by {signal.Signals(stopped.number).name}.", file=sys.stderr)
        return exit_status(stopped.number)


def _status(command: Callable[[], None]) -> int:
    try:
        command()
    except Exception as error:
        return report(error)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the package's own commands; it needs neither torch nor TerraTorch."""
    parser = argparse.ArgumentParser(
        prog="terramind",
        description="TerraMind for TerraTorch: fine-tuning, data and tools.",
        epilog="`terramind fit --help` and the like show TerraTorch's own options.",
    )
    parser.add_argument("--version", action="version", version=f"terramind {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in TERRATORCH_COMMANDS.items():
        commands.add_parser(name, help=f"{text} (as in terratorch)", add_help=False)

    simulate = commands.add_parser("simulate", help="make a data set of simulated scenes")
    simulate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    simulate.add_argument("--chips", type=int, default=60, metavar="N", help="number of chips (default: %(default)s)")
    simulate.add_argument("--size", type=int, default=256, metavar="PX", help="pixels per side (default: %(default)s)")
    simulate.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same bytes (default: %(default)s)"
    )
    simulate.add_argument(
        "--world",
        default="floods",
        metavar="NAME",
        help="floods: regions that flood; globe: places anywhere, for pre-training (default: %(default)s)",
    )
    simulate.add_argument("--processes", type=int, default=1, metavar="N", help="that share the work (default: 1)")
    simulate.set_defaults(run=_simulate)

    splits = commands.add_parser("splits", help="turn the official Sen1Floods11 CSV lists into .txt split files")
    splits.add_argument("--csv-dir", type=Path, required=True, metavar="DIR", help="v1.1/splits/flood_handlabeled")
    splits.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    splits.set_defaults(run=_splits)

    figure = commands.add_parser("figure", help="draw inputs, labels and predictions of some chips as a PNG")
    figure.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with S2L1CHand, LabelHand, ...")
    figure.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="folder that predict wrote")
    figure.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    figure.add_argument("--chips", type=int, default=4, metavar="N", help="number of chips (default: %(default)s)")
    figure.add_argument("--class-names", default="Land,Water", help="comma-separated (default: %(default)s)")
    figure.set_defaults(run=_figure)

    merge = commands.add_parser("merge", help="make a plain checkpoint of one that holds LoRA adapters")
    merge.add_argument("checkpoint", type=Path, help="what fit wrote with backbone_lora")
    merge.add_argument("--out", type=Path, required=True, metavar="CKPT", help="file to write")
    merge.add_argument("--base", type=Path, metavar="FILE", help="the weights it adapts, where they are elsewhere now")
    merge.add_argument("-c", "--config", type=Path, metavar="YAML", help="the run's, if the checkpoint has no settings")
    merge.set_defaults(run=_merge)

    check.add_commands(commands)
    chips.add_commands(commands)
    mapping.add_commands(commands)
    evaluate.add_commands(commands)
    pretrain.add_commands(commands)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=lambda _: print(f"terramind {__version__}"))
    return parser


def _terratorch(words: list[str]) -> None:
    from terramind_plugin.integration.lightning_cli import run

    run(words)


def _simulate(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    from terramind_plugin.simulation.dataset import simulate

    with Progress() as progress:
        bar = progress.add_task(f"Simulating {options.chips} chips", total=options.chips)
        dataset = simulate(
            options.out,
            chips=options.chips,
            size=options.size,
            seed=options.seed,
            world=options.world,
            processes=options.processes,
            on_chip=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    sizes = ", ".join(f"{len(ids)} {name}" for name, ids in dataset.splits.items())
    print(f"{len(dataset.chip_ids)} chips ({sizes}) in {dataset.root}")


def _splits(options: argparse.Namespace) -> None:
    from terramind_plugin.samples.splits import convert_sen1floods11_lists

    for path in convert_sen1floods11_lists(options.csv_dir, options.out):
        print(path)


def _figure(options: argparse.Namespace) -> None:
    from terramind_plugin.simulation.figure import draw_predictions

    names = [name.strip() for name in options.class_names.split(",")]
    draw_predictions(options.data, options.predictions, options.out, chips=options.chips, class_names=names)
    print(options.out)


def _merge(options: argparse.Namespace) -> None:
    from terramind_plugin.backbones.merge import merge_checkpoint
    from terramind_plugin.builders.backbones import build_by_name

    count = merge_checkpoint(
        options.checkpoint, options.out, build=build_by_name, base=options.base, config=options.config
    )
    print(f"{count} adapters merged into {options.out}")


if __name__ == "__main__":
    sys.exit(main())
