"""The words of `terramind reconstruct` and `terramind generate`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.arguments import add_scene_options, scene_options
from terramind_plugin.model.variants import SIZES, VARIANTS
from terramind_plugin.raster.paths import raster_path

WHAT = "in the units of the modality; nodata and NaN are filled"


def add_commands(commands: Any) -> None:
    """Add both commands to the subparsers of `terramind`."""
    text = "encode a chip to tokens and decode it again"
    reconstruct = commands.add_parser("reconstruct", help=text, description=f"{text.capitalize()}.")
    reconstruct.add_argument("chip", type=raster_path, help=f"raster {WHAT}")
    _add_common(reconstruct)
    reconstruct.set_defaults(run=_reconstruct)

    text = "imagine other modalities of chips and whole scenes"
    generate = commands.add_parser("generate", help=text, description=f"{text.capitalize()}.")
    generate.add_argument("scene", type=raster_path, nargs="+", help=f"raster of any size, {WHAT}")
    _add_common(generate)
    generate.add_argument(
        "--to", required=True, metavar="NAMES", help="outputs in the order of generation, e.g. S1GRD,DEM,LULC,coords"
    )
    generate.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a further input of a scene, warped to its grid; coords=LONGITUDE,LATITUDE for its place; repeatable",
    )
    generate.add_argument(
        "--samples", type=int, default=1, metavar="N", help="from N seeds, with their spread (default: %(default)s)"
    )
    generate.add_argument(
        "--tokenizer_ckpt_path",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of the tokenizer of a modality; can be repeated",
    )
    generate.add_argument("--tokenizer_file", type=Path, metavar="FILE", help="vocabulary of coords")
    add_scene_options(generate, "as the model was pre-trained: 224, nano 64")
    generate.set_defaults(run=_generate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", required=True, metavar="NAME", help="what it shows, e.g. S2L2A")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--size",
        default="base",
        choices=tuple(SIZES),
        help="of the model; nano ships with this package and knows simulated worlds alone (default: %(default)s)",
    )
    add_weights(parser)
    parser.add_argument(
        "--steps", type=int, default=10, metavar="N", help="denoising steps of an image (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same files (default: %(default)s)")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights a model gets."""
    parser.add_argument(
        "--pretrained",
        type=_truth,
        default=True,
        metavar="true|false",
        help="the published weights, or those that ship; false for random ones, to see that it runs (default: true)",
    )
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="weights that go before those")


def _truth(word: str) -> bool:
    """Return true or false."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"write true or false, not '{word}'")
    return word.lower() == "true"


def read_pairs(
    option: str, words: Sequence[str], value: str = "FILE", example: str = "S1GRD=chip_S1.tif"
) -> dict[str, str]:
    """Return what stands behind the equals signs, by what stands before them.

    Args:
        option: For the message.
        words: NAME=VALUE each.
        value: What VALUE is.
        example: One such word.

    Raises:
        ConfigError: One is written otherwise, or names something twice.
    """
    pairs: dict[str, str] = {}
    for word in words:
        name, _, text = word.partition("=")
        if not (name and text):
            raise ConfigError(f"{option} takes NAME={value}, e.g. {example}, got '{word}'.")
        if name in pairs:
            raise ConfigError(f"{option} names {name} twice.")
        pairs[name] = text
    return pairs


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    if not options.pretrained and options.ckpt_path is None:
        print("terramind: the weights are random, so the pictures mean nothing: they are noise.", file=sys.stderr)
    return {
        "pretrained": options.pretrained,
        "ckpt_path": options.ckpt_path,
        "steps": options.steps,
        "seed": options.seed,
        "verbose": sys.stdout.isatty(),
    }


def _reconstruct(options: argparse.Namespace) -> None:
    from terramind_plugin.inference.chips import Settings, reconstruct

    for path in reconstruct(
        options.chip, options.modality, options.out, Settings(**_settings(options)), size=options.size
    ):
        print(path)


def _generate(options: argparse.Namespace) -> None:
    from terramind_plugin.inference.chips import Settings
    from terramind_plugin.inference.large import generate_any

    variant = VARIANTS[SIZES[options.size]]
    options.crop = options.crop or variant.img_size
    tokenizers = read_pairs("--tokenizer_ckpt_path", options.tokenizer_ckpt_path)
    settings = Settings(
        **_settings(options),
        tokenizer_ckpt_paths={name: Path(path) for name, path in tokenizers.items()},
        tokenizer_file=options.tokenizer_file,
    )
    written = generate_any(
        options.scene,
        options.modality,
        [name.strip() for name in options.to.split(",") if name.strip()],
        settings,
        scene_options(options, variant.patch_size, align=variant.patch_size),
        size=options.size,
        samples=options.samples,
        further=read_pairs("--input", options.input),
        probabilities=options.probabilities,
    )
    for path in written:
        print(path)
