"""Loading of a tokenizer's weights from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from terramind_plugin.errors import WeightsError
from terramind_plugin.model.checkpoints import read_file, same_kind
from terramind_plugin.model.weights import LoadReport
from terramind_plugin.tokenizers.image import ImageTokenizer

TOKENIZER_ANCHORS = ("quant_proj.weight", "post_quant_proj.weight", "decoder.time_embed.0.weight")
"""Characteristic weights of a tokenizer: the first one of an encoder, the others of a decoder."""


def load_tokenizer(model: ImageTokenizer, path: str | Path) -> LoadReport:
    """Copy the weights in a file into a tokenizer and return what was loaded.

    Args:
        model: The tokenizer; weights of parts that were not built are ignored.
        path: A published .pt file, a .safetensors file, or a .ckpt of a model that contains the tokenizer.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file cannot be read, holds no tokenizer, or not the one for this model.
    """
    name = model.variant.name
    prefix, stored = _find_tokenizer(read_file(path)[1], str(model.variant.modality.token_key), path)
    report, own, chosen = LoadReport(source=str(path)), model.state_dict(), {}
    for key, target in own.items():
        value = stored.get(key)
        if value is None and key.endswith("pos_emb"):
            report.fresh.append(key)
        elif value is None:
            report.missing.append(prefix + key)
        elif key.endswith("pos_emb") and value.shape != target.shape:
            report.fresh.append(key)  # a fixed table, not a weight
        elif value.shape != target.shape:
            report.mismatched.append(f"{prefix}{key} {list(value.shape)} instead of {list(target.shape)}")
        elif not same_kind(value, target):
            report.mismatched.append(f"{prefix}{key} of {value.dtype} instead of {target.dtype}")
        else:
            chosen[key] = value
    built = tuple(f"{part}." for part, _ in model.named_children())
    report.loaded = list(chosen)
    report.unexpected = [prefix + key for key in stored if key.startswith(built) and key not in own]
    report.unused = len(set(stored) - set(own)) - len(report.unexpected)
    if report.missing or report.mismatched or report.unexpected:
        raise WeightsError(
            f"{report}\nThe file does not fit {name}: is it the tokenizer of another modality, or of TerraMind 0.1?"
        )
    model.load_state_dict(chosen, strict=False)
    return report


def _find_tokenizer(tensors: Mapping[str, Tensor], key: str, path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of a tokenizer's weights in a file, and its weights by their names without the prefix."""
    prefixes = {
        name.removesuffix(anchor)
        for anchor in TOKENIZER_ANCHORS
        for name in tensors
        if name == anchor or name.endswith(f".{anchor}")
    }
    if not prefixes:
        raise WeightsError(
            f"{path} holds no image tokenizer: none of its {len(tensors)} names ends with one of "
            f"{', '.join(TOKENIZER_ANCHORS)}."
        )
    # A generator contains several tokenizers, by the key of their modality, each with the parts that it needs.
    prefixes = {prefix for prefix in prefixes if key in prefix.split(".")} or prefixes
    if len(prefixes) > 1:
        raise WeightsError(f"{path} holds several tokenizers and none is called {key}: {', '.join(sorted(prefixes))}.")
    prefix = prefixes.pop()
    return prefix, {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
