"""The words of `terramind map`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terramind_plugin.scenes.words import add_scene_options, scene_options


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of `terramind`."""
    text = "run a fine-tuned task over whole scenes"
    parser = commands.add_parser("map", help=text, description=f"{text.capitalize()}; the same command resumes.")
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="YAML", help="as for terramind fit")
    parser.add_argument("--ckpt_path", type=Path, required=True, metavar="FILE", help="the task's checkpoint")
    parser.add_argument(
        "--scene",
        action="append",
        nargs="+",
        required=True,
        metavar="[NAME=]FILE",
        help="a raster of any size, or several; once for each modality, e.g. --scene S2L1C=a.tif --scene S1GRD=b.tif",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add_scene_options(parser)
    parser.set_defaults(run=_map)


def _map(options: argparse.Namespace) -> None:
    from terramind_plugin.mapping.task import map_scenes

    written = map_scenes(
        options.config,
        options.ckpt_path,
        options.scene,
        scene_options(options),
        probabilities=options.probabilities,
    )
    for path in written:
        print(path)
