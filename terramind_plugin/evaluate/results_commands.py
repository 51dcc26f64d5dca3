"""The words of `terramind results`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from terramind_plugin.evaluate.model_commands import (
    add_tokenizer_files,
    read_tokenizer_files,
    weights_of,
    write_json,
)
from terramind_plugin.files import write_figure, write_text
from terramind_plugin.inference.commands import add_weights


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of `terramind`."""
    text = "measure what a model has learned of simulated worlds"
    parser = commands.add_parser(
        "results",
        help=text,
        description=f"{text.capitalize()}: a page with tables and pictures. The chips come from terramind simulate "
        "--world globe, with a seed that no training used.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of terramind simulate")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for RESULTS.md and results/")
    parser.add_argument("--model", default="terramind_sim_nano", metavar="NAME", help="default: %(default)s")
    add_weights(parser)
    add_tokenizer_files(parser)
    parser.set_defaults(run=_results)


def _results(options: argparse.Namespace) -> None:
    from terramind_plugin._version import __version__
    from terramind_plugin.evaluate import results_page as page
    from terramind_plugin.evaluate.locate import check_variant
    from terramind_plugin.evaluate.results import Weights, measure, read_world

    check_variant(options.model)
    weights = Weights(options.pretrained, options.ckpt_path, read_tokenizer_files(options))
    described = {
        "model": options.model,
        "weights": weights_of(options.model, options.pretrained, options.ckpt_path),
        "data": _simulated_with(options.data),
        "terramind_plugin_version": __version__,
    }
    world = read_world(options.data, options.model)
    results = measure(world, options.model, weights, lambda what: print(f"Measuring {what}", file=sys.stderr))
    folder = options.out / page.FOLDER
    title = f"{options.model}, weights: {described['weights']}"
    for name, figure in page.pictures(results, title).items():
        write_figure(folder / name, figure)
    write_json(folder / page.NUMBERS, page.record(results, described))
    write_text(options.out / page.PAGE, page.write_page(results, described))
    print(options.out / page.PAGE)


def _simulated_with(root: Path) -> str:
    """Return the command that made a simulated data set."""
    import json

    from terramind_plugin.errors import DataError

    try:
        known = json.loads((root / "simulation.json").read_text(encoding="utf-8"))
        words = " ".join(f"--{name} {known[name]}" for name in ("chips", "size", "seed"))
        return f"terramind simulate --world {known.get('world', 'floods')} {words}"
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{root} is no folder of terramind simulate ({type(error).__name__}).") from error
