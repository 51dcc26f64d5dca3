"""The model that a user names by a registry name, a file of weights, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from terramind_plugin.errors import ConfigError, WeightsError, suggest
from terramind_plugin.model.repository import HUB, fetch_weights, is_location
from terramind_plugin.model.variants import SIZES, VARIANTS, Variant


def look_up_model(model: str, ckpt_path: Path | None = None) -> tuple[Variant, Path | None]:
    """Return the architecture that a user names, and the file with its weights; None for the published ones.

    Args:
        model: A registry name such as 'terramind_v1_base', the path of a checkpoint or of an exported folder, or
            'hub:ORG/NAME'.
        ckpt_path: File with weights for a registry name.

    Raises:
        ConfigError: There is no such model, or weights are named twice.
        WeightsNotFoundError: There is no such file, or no such repository on this machine or the hub.
        WeightsError: The file holds no TerraMind model, or one of an unknown size.
    """
    if model in VARIANTS:
        return VARIANTS[model], ckpt_path
    if not is_location(model):
        near = f" Did you mean '{SIZES[model]}'?" if model in SIZES else suggest(model, VARIANTS)
        raise ConfigError(
            f"There is no model '{model}'.{near} --model takes one of {', '.join(VARIANTS)}, the "
            f"path of a checkpoint or of an exported folder, or {HUB}ORG/NAME."
        )
    path = fetch_weights(model)
    if ckpt_path is not None:
        raise ConfigError(f"Both --model {model} and --ckpt_path {ckpt_path} name weights. Give one of them.")
    return read_variant(path), path


def read_variant(path: Path) -> Variant:
    """Return the architecture of the weights in a file.

    The settings of a Lightning checkpoint, or of a config.json beside the file, name it. Without settings the shapes
    of the encoder's weights tell it.

    Args:
        path: As for `terramind_plugin.model.weights.read_checkpoint`.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file holds no TerraMind encoder, or one of an unknown size.
    """
    from terramind_plugin.model.checkpoints import model_args_of, read_file
    from terramind_plugin.model.weights import read_checkpoint

    content, _ = read_file(path)
    named = str(model_args_of(content, path).get("backbone")).removeprefix("terratorch_").removesuffix("_tim")
    if named in VARIANTS:
        return VARIANTS[named]
    tensors = read_checkpoint(path).tensors
    blocks = {name.split(".")[1] for name in tensors if name.startswith("encoder.")}
    norm = tensors.get("encoder_norm.weight")
    dim = 0 if norm is None else norm.numel()
    for variant in VARIANTS.values():
        if (variant.dim, variant.depth) == (dim, len(blocks)):
            return variant
    raise WeightsError(
        f"{path} holds an encoder of {len(blocks)} blocks and width {dim}, which is not a known size: "
        + ", ".join(f"{one.name} has {one.depth} and {one.dim}" for one in VARIANTS.values())
        + "."
    )
