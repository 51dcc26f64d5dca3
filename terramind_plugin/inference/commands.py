"""The commands `reconstruct`, `generate` and `map`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.variants import SIZES
from terramind_plugin.raster.paths import raster_path

PRECISIONS = ("32", "bf16", "16")
UNITS = "in the units of the modality; nodata and NaN are filled"


def reconstruct(
    scenes: Sequence[Path],
    modality: str,
    out: Path,
    *,
    size: str = "base",
    pretrained: bool = True,
    ckpt_path: Path | None = None,
    steps: int = 10,
    seed: int = 0,
    probabilities: bool = False,
    **windows: Any,
) -> list[Path]:
    """Encode scenes to tokens and decode them again; return the files written.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled.
        modality: What the scenes show, e.g. S2L2A.
        out: Folder to write to.
        size: Size of the model; nano ships with this package and knows simulated worlds alone.
        pretrained: Load the published weights, or those that ship; false for random ones, to see that it runs.
        ckpt_path: Weights that go before those.
        steps: Denoising steps of an image.
        seed: The same seed gives the same files.
        probabilities: Also write the probability of each pixel's class, as float32.
        windows: As in `choose_options`.
    """
    from terramind_plugin.inference import generation
    from terramind_plugin.inference.settings import Settings, variant_of
    from terramind_plugin.model.modalities import resolve
    from terramind_plugin.tokenizers.variants import TOKENIZERS

    _warn_of_random_weights(pretrained, ckpt_path)
    settings = Settings(pretrained, ckpt_path, steps, seed)
    settings.check()
    tokenizer = TOKENIZERS[generation.tokenizer_name(resolve(modality), variant_of(size))]
    options = choose_options(out, tokenizer.image_size, tokenizer.patch_size, align=tokenizer.patch_size, **windows)
    return generation.reconstruct(scenes, modality, settings, options, size=size, probabilities=probabilities)


def generate(
    scenes: Sequence[Path],
    modality: str,
    to: Sequence[str],
    out: Path,
    *,
    size: str = "base",
    pretrained: bool = True,
    ckpt_path: Path | None = None,
    steps: int = 10,
    seed: int = 0,
    inputs: Mapping[str, str] | None = None,
    samples: int = 1,
    tokenizer_ckpt_paths: Mapping[str, str] | None = None,
    tokenizer_file: Path | None = None,
    probabilities: bool = False,
    **windows: Any,
) -> list[Path]:
    """Generate other modalities of chips and whole scenes; return the files written.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled.
        modality: What the scenes show, e.g. S2L2A.
        to: Outputs in the order of generation, e.g. S1GRD,DEM,LULC,coords.
        out: Folder to write to.
        size: Size of the model; nano ships with this package and knows simulated worlds alone.
        pretrained: Load the published weights, or those that ship; false for random ones, to see that it runs.
        ckpt_path: Weights that go before those.
        steps: Denoising steps of an image.
        seed: The same seed gives the same files.
        inputs: Further inputs of one scene by modality, warped to its grid; coords=LONGITUDE,LATITUDE for its position.
        samples: Number of samples, from consecutive seeds; more than one also gives their spread.
        tokenizer_ckpt_paths: Files with weights of tokenizers, by modality.
        tokenizer_file: Vocabulary of coords.
        probabilities: Also write the probability of each pixel's class, as float32.
        windows: As in `choose_options`.
    """
    from terramind_plugin.inference import generation
    from terramind_plugin.inference.settings import Settings, variant_of

    _warn_of_random_weights(pretrained, ckpt_path)
    variant = variant_of(size)
    tokenizers = {name: Path(path) for name, path in (tokenizer_ckpt_paths or {}).items()}
    settings = Settings(pretrained, ckpt_path, steps, seed, tokenizers, tokenizer_file)
    options = choose_options(out, variant.img_size, variant.patch_size, align=variant.patch_size, **windows)
    return generation.generate(
        scenes, modality, to, settings, options,
        size=size, samples=samples, further=inputs, probabilities=probabilities,
    )  # fmt: skip


def map_scenes(
    config: Path,
    ckpt_path: Path,
    scenes: Sequence[Sequence[str]],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    probabilities: bool = False,
    **windows: Any,
) -> list[Path]:
    """Run a fine-tuned task over whole scenes; return the files written.

    Args:
        config: YAML of the fine-tuning, as for terramind fit.
        ckpt_path: Checkpoint of the task.
        scenes: For each modality the rasters of all scenes; the first is written NAME=FILE if there are several.
        out: Folder to write to.
        overrides: Options of terramind fit, e.g. --data.init_args.offsets.S2L2A=-1000.
        probabilities: Also write the probabilities of all classes, as float32.
        windows: As in `choose_options`.
    """
    from terramind_plugin.inference import segmentation

    task = segmentation.open_task(config, ckpt_path, overrides)
    options = choose_options(out, windows.get("crop") or task.training_size(), task.patch, **windows)
    return segmentation.map_scenes(task, scenes, options, probabilities=probabilities)


def choose_options(
    out: Path,
    default_crop: int,
    patch: int,
    *,
    align: int = 1,
    crop: int | None = None,
    stride: int | None = None,
    margin: int = 8,
    batch_size: int = 8,
    precision: str = "32",
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    cog: bool = False,
    restart: bool = False,
) -> Any:
    """Return the `Options` of a run.

    Args:
        out: Folder to write to.
        default_crop: Height and width of a window, if none is given.
        patch: Patch size of the model in pixels.
        align: Number that all window starts are multiples of.
        crop: Height and width of a window in pixels.
        stride: Pixels from one window to the next; 0.85 of a crop by default.
        margin: Pixels at the edge of a window that do not count.
        batch_size: Windows at once.
        precision: 32, bf16 or 16; bf16 takes half the time.
        accelerator: cpu, gpu, cuda or mps; auto for what is there.
        devices: Processes on a machine.
        nodes: Machines.
        cog: Write Cloud-Optimized GeoTIFFs.
        restart: Do not go on with an unfinished run.
    """
    from terramind_plugin.inference import job

    return job.Options.choose(
        out, default_crop if crop is None else crop, patch, stride=stride, margin=margin, align=align,
        batch_size=batch_size, precision=job.PRECISIONS[precision], accelerator=accelerator, devices=devices,
        nodes=nodes, cog=cog, restart=restart, verbose=True,
    )  # fmt: skip


def _warn_of_random_weights(pretrained: bool, ckpt_path: Path | None) -> None:
    if not pretrained and ckpt_path is None:
        print("terramind: the weights are random, so the pictures mean nothing: they are noise.", file=sys.stderr)


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `terramind`."""
    text = "encode scenes to tokens and decode them again"
    parser = commands.add_parser("reconstruct", help=text, description=f"{text.capitalize()}.")
    parser.add_argument("scenes", type=raster_path, nargs="+", help=f"rasters of any size, {UNITS}")
    _add_model(parser)
    _add_windows(parser, "as the tokenizer was trained: 256, nano 64")
    parser.set_defaults(run=lambda options: _run(reconstruct, options))

    text = "generate other modalities of chips and whole scenes"
    parser = commands.add_parser("generate", help=text, description=f"{text.capitalize()}.")
    parser.add_argument("scenes", type=raster_path, nargs="+", help=f"rasters of any size, {UNITS}")
    _add_model(parser)
    parser.add_argument(
        "--to", required=True, metavar="NAMES",
        help="outputs in the order of generation, e.g. S1GRD,DEM,LULC,coords",
    )  # fmt: skip
    parser.add_argument(
        "--input", dest="inputs", action="append", default=[], metavar="NAME=FILE",
        help="a further input of a scene, warped to its grid; coords=LONGITUDE,LATITUDE for its position; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=1, metavar="N", help="from N seeds, with their spread (default: %(default)s)"
    )
    parser.add_argument(
        "--tokenizer_ckpt_path", dest="tokenizer_ckpt_paths", action="append", default=[], metavar="NAME=FILE",
        help="weights of the tokenizer of a modality; can be repeated",
    )  # fmt: skip
    parser.add_argument("--tokenizer_file", type=Path, metavar="FILE", help="vocabulary of coords")
    _add_windows(parser, "as the model was pre-trained: 224, nano 64")
    parser.set_defaults(run=_generate)

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
        "--scene", dest="scenes", action="append", nargs="+", required=True, metavar="[NAME=]FILE",
        help="a raster of any size, or several; once for each modality, e.g. --scene S2L1C=a.tif --scene S1GRD=b.tif",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    _add_windows(parser, "as the images of the training")
    parser.set_defaults(run=lambda options: _run(map_scenes, options, "overrides"), words=[])


def _generate(options: argparse.Namespace) -> None:
    options.to = [name.strip() for name in options.to.split(",") if name.strip()]
    options.inputs = read_pairs("--input", options.inputs)
    options.tokenizer_ckpt_paths = read_pairs("--tokenizer_ckpt_path", options.tokenizer_ckpt_paths)
    _run(generate, options)


def _run(command: Callable[..., list[Path]], options: argparse.Namespace, rest: str | None = None) -> None:
    """Call a command with parsed options, and print the files written."""
    values = {name: value for name, value in vars(options).items() if name not in ("run", "words")}
    if rest is not None:
        values[rest] = options.words
    for path in command(**values):
        print(path)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", required=True, metavar="NAME", help="what they show, e.g. S2L2A")
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


def _add_windows(parser: argparse.ArgumentParser, crop: str) -> None:
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
        "--precision", default="32", choices=PRECISIONS, help="bf16 takes half the time (default: %(default)s)"
    )
    group.add_argument(
        "--probabilities", action="store_true", help="also write the probabilities of classes, as float32"
    )
    group.add_argument("--cog", action="store_true", help="write Cloud-Optimized GeoTIFFs")
    group.add_argument("--restart", action="store_true", help="do not go on with an unfinished run")
    group.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, gpu, ... (default: what is there)")
    group.add_argument("--devices", type=int, default=1, metavar="N", help="processes on a machine (default: 1)")
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")


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
