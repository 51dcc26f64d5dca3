"""The words of `terramind zero-shot`, `localise` and `few-shot`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError

RANDOM = "terramind: the weights are random, so the results say nothing but that it runs."


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `terramind`."""
    _add_zero_shot(commands)


def _add_zero_shot(commands: Any) -> None:
    text = "map a land cover class without training and compare with labels"
    parser = commands.add_parser(
        "zero-shot",
        help=text,
        description=f"{text.capitalize()}: land cover is generated from each set of a configuration's modalities, for "
        "its test split. Options of terramind fit hold; the same command resumes.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="YAML", help="as for terramind fit")
    parser.add_argument(
        "--target",
        required=True,
        metavar="CLASSES",
        help="land cover classes, e.g. 'water' or 'water,flooded vegetation'",
    )
    parser.add_argument(
        "--positive", default="1", metavar="IDS", help="ids in the labels that mean the same (default: %(default)s)"
    )
    parser.add_argument(
        "--inputs",
        action="append",
        default=[],
        metavar="NAMES",
        help="a set such as S2L1C,S1GRD; repeatable (default: all)",
    )
    parser.add_argument("--out", type=Path, default=Path("zero_shot"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest tokens (default), 1 samples"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--tokenizer_ckpt_path",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of the tokenizer of a modality; repeatable",
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="windows at once (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="do not go on with an unfinished run")
    parser.set_defaults(run=_zero_shot, words=[])


def _zero_shot(options: argparse.Namespace) -> None:
    from terramind_plugin._version import __version__
    from terramind_plugin.evaluate import zero_shot as work
    from terramind_plugin.evaluate import zero_shot_report as report
    from terramind_plugin.evaluate.testset import read_experiment

    target = work.read_target(options.target, options.positive)
    tokenizers = {name: Path(path) for name, path in _pairs(options.tokenizer_ckpt_path).items()}
    experiment = read_experiment(options.config, options.words)
    sets = work.choose_inputs(list(experiment.test.expected), options.inputs)
    described = {
        "model": f"{experiment.variant}_generate",
        "weights": weights_of(experiment.pretrained, experiment.ckpt_path),
        "temperature": f"{options.temperature:g}",
        "seed": str(options.seed),
        "terramind_plugin_version": __version__,
    }
    generator = work.build_land_cover_generator(
        experiment, temperature=options.temperature, tokenizer_ckpt_paths=tokenizers
    )
    model = work.TargetGenerator(generator, target, experiment.test.scales, options.seed)
    window = work.window_options(
        experiment.variant, options.out, batch_size=options.batch_size, restart=options.restart, verbose=True
    )
    done = work.map_target(model, experiment, sets, window, described)
    rows = [work.score(experiment.test, target, names, pairs) for names, pairs in done.items()]
    head, *cells = report.table(rows)
    show([head, *cells], f"{target.name}, zero-shot, {described['model']}, weights: {described['weights']}")
    print(report.PAPER)
    write_json(options.out / "zero_shot.json", report.record(rows, target, described))
    best = max(rows, key=lambda row: len(row.inputs))
    title = f"{target.name} from {' and '.join(best.inputs)}, zero-shot: {described['model']}, {described['weights']}"
    save(report.draw(experiment.test, target, best, done[best.inputs], title), options.out / "zero_shot.png")
    for path in (options.out / "zero_shot.json", options.out / "zero_shot.png"):
        print(path)
    for names in done:
        print(options.out / "+".join(names))


def weights_of(pretrained: bool, ckpt_path: Path | None) -> str:
    """Return which weights a model has, and say so where they are random."""
    if ckpt_path is None and not pretrained:
        print(RANDOM, file=sys.stderr)
        return "random"
    return "published" if ckpt_path is None else ckpt_path.name


def show(rows: Sequence[Sequence[str]], title: str) -> None:
    """Print a table whose head is its first row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=max(Console().width, 110)).print(table)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure, likewise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    if not all(pairs.values()) or len(pairs) < len(words):
        raise ConfigError(f"--tokenizer_ckpt_path takes NAME=FILE once for each modality, got {' '.join(words)}.")
    return pairs
