"""The words of commands that work on scenes; no heavy import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Lightning's names by ours."""
OVERLAP = 0.15
"""Share of a window that overlaps the next one, if no stride is given."""


def add_scene_options(parser: argparse.ArgumentParser, crop: str) -> None:
    """Add the options of windows, machines and files to a command's.

    Args:
        parser: Of the command.
        crop: What the command does without --crop, for the help text.
    """
    group = parser.add_argument_group("scenes")
    group.add_argument("--crop", type=int, metavar="PX", help=f"height and width of a window (default: {crop})")
    group.add_argument("--stride", type=int, metavar="PX", help="from one window to the next (default: 0.85 of a crop)")
    group.add_argument(
        "--margin",
        type=int,
        default=8,
        metavar="PX",
        help="edge of a window that does not count (default: %(default)s)",
    )
    group.add_argument("--batch_size", type=int, default=8, metavar="N", help="windows at once (default: %(default)s)")
    group.add_argument(
        "--precision", default="32", choices=tuple(PRECISIONS), help="bf16 takes half the time (default: %(default)s)"
    )
    group.add_argument(
        "--probabilities", action="store_true", help="also write the probabilities of classes, as float32"
    )
    group.add_argument("--cog", action="store_true", help="write Cloud-Optimized GeoTIFFs")
    group.add_argument("--restart", action="store_true", help="do not go on with an unfinished run")
    group.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, gpu, ... (default: what is there)")
    group.add_argument("--devices", type=int, default=1, metavar="N", help="processes on a machine (default: 1)")
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")


def scene_options(options: argparse.Namespace, patch: int = 16, **more: Any) -> Any:
    """Return the `Options` that a command line asks for.

    Args:
        options: Parsed.
        patch: Of the model; strides are multiples of it if none is given.
        more: Further fields.

    Raises:
        ConfigError: A number is not possible.
    """
    from terramind_plugin.inference.job import Options

    if not 0 <= 2 * options.margin < options.crop:
        raise ConfigError(f"margin must be at least 0 and less than half of crop {options.crop}, got {options.margin}.")
    stride = options.stride
    if stride is None:
        stride = max(1, round((1 - OVERLAP) * (options.crop - 2 * options.margin)))
        stride = stride // patch * patch or stride
    return Options(
        out=Path(options.out),
        crop=options.crop,
        stride=stride,
        margin=options.margin,
        batch_size=options.batch_size,
        precision=PRECISIONS[options.precision],
        accelerator=options.accelerator,
        devices=options.devices,
        nodes=options.nodes,
        cog=options.cog,
        restart=options.restart,
        verbose=True,
        **more,
    )
