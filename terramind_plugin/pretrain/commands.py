"""The words of `terramind export`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `terramind`."""
    text = "write the weights of a pre-training checkpoint as .safetensors"
    export = commands.add_parser("export", help=text, description=f"{text.capitalize()}, for ckpt_path.")
    export.add_argument("checkpoint", type=Path, help="what fit wrote")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")
    export.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, bfloat16 or float16")
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from terramind_plugin.pretrain.export import export_weights

    size = export_weights(options.checkpoint, options.out, options.dtype)
    print(f"{options.out} ({size / 1e6:.2f} MB)")
