"""Export of a checkpoint's weights, without the optimiser's state, for `ckpt_path` or for publication."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from terramind_plugin._version import __version__
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.model.checkpoints import read_file
from terramind_plugin.system.files import write_bytes
from terramind_plugin.system.process import refuse_inputs

PREFIX = "model."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_weights(checkpoint: Path, out: Path, dtype: str = "float32") -> int:
    """Write the weights of a pre-training checkpoint as .safetensors and return the size of the file in bytes.

    Position tables, which a model computes itself, and the second name of shared weights are left out.

    Args:
        checkpoint: Checkpoint of `TokenizerTask` or `MaskedModellingTask`, with averaged weights if the run has them.
        out: File to write.
        dtype: Name in `DTYPES`. Rounding changes weights by at most 1 part in 2048 for float16, in 256 for bfloat16.

    Raises:
        ConfigError: The type is unknown, the name does not end in .safetensors, or the file to write is the checkpoint.
        WeightsError: The checkpoint cannot be read, is of another task, or a weight does not fit the type.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'.")
    if out.suffix != ".safetensors":
        raise ConfigError(f"The file to write must end in .safetensors, got {out}.")
    refuse_inputs([out], [checkpoint])
    _, stored = read_file(checkpoint)
    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        own = name.removeprefix(PREFIX)
        if own != name and not own.endswith(("pos_emb", "to_logits.weight")):
            if not value.is_floating_point():
                raise WeightsError(f"{checkpoint}: {name} is {value.dtype}, expected floating-point numbers.")
            weights[own] = value.detach().to(DTYPES[dtype], copy=True).contiguous()
            if not weights[own].isfinite().all():
                raise WeightsError(f"{checkpoint}: {name} is not finite as {dtype}. Choose float32, or train again.")
    if not weights:
        raise WeightsError(f"{checkpoint} is not from a pre-training task: no name begins with '{PREFIX}'.")
    write_bytes(out, save(weights, {"format": "pt", "terramind_plugin": __version__}))
    return out.stat().st_size
