"""The commands `export` and `merge`; slow imports happen only when one of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from terramind_plugin.errors import ConfigError, counted
from terramind_plugin.inference.options import ModelArguments

FORMATS = {".safetensors": "weights", ".onnx": "onnx", ".pt2": "torch"}
"""Formats by file name ending; the format hub is a folder."""


def run_export(
    *,
    out: Path,
    source: ModelArguments,
    modalities: list[str] | None = None,
    format: Literal["onnx", "torch", "hub", "weights"] | None = None,
    config: Path | None = None,
    layers: list[int] | None = None,
    crop: int | None = None,
    standardize: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overrides: Sequence[str] = (),
) -> None:
    """Write a model as a file for other programs, or as a folder for the Hugging Face hub.

    A fine-tuned checkpoint is exported with decoder and head; a registry name or pre-trained weights are exported as an
    encoder. The files describe their bands, units, statistics and classes.

    Args:
        out: File or folder to write.
        source: Model.
        modalities: Inputs, e.g. S2L2A,S1GRD (default: all of a fine-tuned model).
        format: onnx; torch for torch.export; hub for a folder; weights for .safetensors (default: by the ending of
            --out).
        config: Configuration of the fine-tuning, if the checkpoint does not hold its settings.
        layers: Layers of an encoder to return, from 0 (default: all).
        crop: Height and width of images in pixels (default: as in training).
        standardize: Include the standardisation of inputs in an onnx or torch file.
        dtype: Type of the weights, for the formats hub and weights.
        overrides: Options of TerraTorch.
    """
    kind = format or FORMATS.get(out.suffix, "hub")
    out = _place(out, kind)
    if dtype != "float32" and kind in ("onnx", "torch"):
        raise ConfigError(f"--dtype {dtype} is for the formats hub and weights; a graph is written in float32.")
    if standardize and kind not in ("onnx", "torch"):
        raise ConfigError(f"--standardize is for onnx and torch; the readers of {kind} standardise by its settings.")
    if kind == "weights":
        _export_weights(source, out, dtype)
        return
    from terramind_plugin.export import graphs, hub
    from terramind_plugin.export.loading import load_subject

    hub.check_place(out, kind, source, config)
    subject = load_subject(source, modalities, config=config, layers=layers, crop=crop, overrides=overrides)
    if kind == "hub":
        for path in hub.write_folder(subject, out, dtype=dtype):
            print(path)
        return
    write = graphs.write_onnx if kind == "onnx" else graphs.write_program
    difference = write(subject, out, standardize=standardize)
    print(f"{out} ({out.stat().st_size / 1e6:.2f} MB, within {difference:.0e} of the model)")


def _place(out: Path, kind: str) -> Path:
    """Return the file to write: `out`, or a file such as model.onnx in it if it is a folder.

    Raises:
        ConfigError: The file has the ending of another format.
    """
    ending = next((ending for ending, name in FORMATS.items() if name == kind), None)
    if ending is None:
        if out.suffix in FORMATS or out.is_file():
            raise ConfigError(f"--format hub writes a folder, got --out {out}.")
        return out
    if out.is_dir() or (not out.suffix and kind != "weights"):
        return out / f"model{ending}"
    if out.suffix != ending:
        raise ConfigError(f"The file to write must end in {ending}, got {out}.")
    return out


def _export_weights(source: ModelArguments, out: Path, dtype: str) -> None:
    from terramind_plugin.export.weights import export_weights
    from terramind_plugin.model.repository import fetch_weights, is_location

    if not is_location(source.model):
        raise ConfigError(
            f"--model {source.model} names no checkpoint. Give the one whose weights you want, or --format onnx, torch "
            "or hub."
        )
    size = export_weights(fetch_weights(source.model), out, dtype)
    print(f"{out} ({size / 1e6:.2f} MB)")


def run_merge(*, model: Path, out: Path, base: Path | None = None, config: Path | None = None) -> None:
    """Merge LoRA adapters into the weights of a checkpoint.

    Args:
        model: Checkpoint that fit wrote with backbone_lora.
        out: File to write.
        base: File of the weights for which the adapters were made, if it is now in another place.
        config: Configuration of the run, if the checkpoint does not hold its settings.
    """
    from terramind_plugin.export.merge import merge_checkpoint

    count = merge_checkpoint(model, out, base=base, config=config)
    print(f"{counted(count, 'adapter')} merged into {out}")
