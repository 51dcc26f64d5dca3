"""The words of `terramind export` and `terramind tokenize`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terramind_plugin.inference.commands import read_pairs


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `terramind`."""
    text = "write the weights of a pre-training checkpoint as .safetensors"
    export = commands.add_parser("export", help=text, description=f"{text.capitalize()}, for ckpt_path.")
    export.add_argument("checkpoint", type=Path, help="what fit wrote")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")
    export.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, bfloat16 or float16")
    export.set_defaults(run=_export)

    text = "make the token ids of chips once and store them, for masked modelling"
    tokenize = commands.add_parser("tokenize", help=text, description=f"{text.capitalize()}.")
    tokenize.add_argument(
        "--family", default="terramind_v1", metavar="NAME", help="whose tokenizers (default: %(default)s)"
    )
    tokenize.add_argument(
        "--data",
        action="append",
        default=[],
        required=True,
        metavar="NAME=DIR",
        help="GeoTIFFs of a modality, e.g. S2L2A=data/S2L2A, or with an ending 'S2L2A=data/*_S2L2A.tif'; repeatable",
    )
    tokenize.add_argument(
        "--ckpt_path",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of a modality's tokenizer, by default the published ones; repeatable",
    )
    tokenize.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    tokenize.add_argument(
        "--turns", type=int, default=8, metavar="N", help="8 for all symmetries of a square, or 1 (default: 8)"
    )
    tokenize.add_argument("--replace", action="store_true", help="make anew what is out of date")
    tokenize.set_defaults(run=_tokenize)


def _export(options: argparse.Namespace) -> None:
    from terramind_plugin.pretrain.export import export_weights

    size = export_weights(options.checkpoint, options.out, options.dtype)
    print(f"{options.out} ({size / 1e6:.2f} MB)")


def _tokenize(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    from terramind_plugin.model.modalities import resolve
    from terramind_plugin.pretrain.chips import make_folders
    from terramind_plugin.pretrain.tokenize import tokenize_folders

    given = {name: Path(text) for name, text in read_pairs("--data", options.data, "DIR", "LULC=data/LULC").items()}
    patterns = {name: path.name for name, path in given.items() if path.name.startswith("*")}
    folders = make_folders({name: path.parent if name in patterns else path for name, path in given.items()}, patterns)
    weights = {
        resolve(name).name: Path(text)
        for name, text in read_pairs("--ckpt_path", options.ckpt_path, example="LULC=last.ckpt").items()
    }
    with Progress() as progress:
        bars = {name: progress.add_task(name, total=None) for name in folders}
        written = tokenize_folders(
            options.family,
            folders,
            options.out,
            ckpt_paths=weights,
            turns=options.turns,
            replace=options.replace,
            on_chip=lambda name, done, total: progress.update(bars[name], completed=done, total=total),
        )
    for name in folders:
        path = options.out / f"{name}.safetensors"
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB{'' if path in written else ', up to date'})")
