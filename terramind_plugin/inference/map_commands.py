"""The words of `terramind map`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terramind_plugin.inference.arguments import add_scene_options, scene_options


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of `terramind`."""
    text = "run a fine-tuned task over whole scenes"
    parser = commands.add_parser(
        "map",
        help=text,
        description=f"{text.capitalize()}; the same command resumes. Options of terramind fit hold, e.g. "
        "--data.init_args.offsets.S2L2A=-1000.",
    )
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
    add_scene_options(parser, "as the images of the training")
    parser.set_defaults(run=_map, words=[])


def _map(options: argparse.Namespace) -> None:
    from terramind_plugin.inference.segmentation import map_scenes, open_task

    task = open_task(options.config, options.ckpt_path, options.words)
    options.crop = options.crop or task.training_size()
    written = map_scenes(task, options.scene, scene_options(options, task.patch), probabilities=options.probabilities)
    for path in written:
        print(path)
