"""Weights of the tokenizers inside a backbone, and the vocabulary of coordinates in a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from terramind_plugin.backbones.tokenized import FrozenTokenizers
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.model.checkpoints import read_file
from terramind_plugin.model.download import fetch_file
from terramind_plugin.model.modalities import resolve, token_key
from terramind_plugin.tokenizers.coordinates import CoordsIds
from terramind_plugin.tokenizers.weights import load_tokenizer

logger = logging.getLogger("terramind_plugin")

COORDS_IDS = "tokenizer.coords."
"""Part of the names of the vocabulary of coordinates in checkpoints of backbones."""


def load_tokenizers(
    part: FrozenTokenizers | None,
    pretrained: bool,
    ckpt_path: str | Path | None,
    paths: Mapping[str, str | Path] | None,
    argument: str,
    prefix: str = "",
) -> None:
    """Load weights into the tokenizers of some inputs.

    Args:
        part: The tokenizers; None if no input needs one.
        pretrained: Whether to load the published weights that no file contains.
        ckpt_path: File with the weights of the backbone.
        paths: Files with the weights of tokenizers, by modality.
        argument: Argument that names the inputs, for messages.
        prefix: Beginning of the argument that names the files.

    Raises:
        ConfigError: A file belongs to an input without a tokenizer.
        WeightsError: The weights are missing or do not fit.
    """
    tokenizers = {} if part is None else part.tokenizers()
    files = {token_key(resolve(name)): path for name, path in (paths or {}).items()}
    names = [tokenizer.variant.modality.name for tokenizer in tokenizers.values()]
    if not set(files) <= set(tokenizers):
        raise ConfigError(
            f"{prefix}tokenizer_ckpt_paths names {list(paths or ())}; {argument} has {names} with an image tokenizer."
        )
    stored = read_file(ckpt_path)[1] if part is not None and ckpt_path is not None else {}
    for module in part.children() if part is not None else ():
        table = {name.rpartition(COORDS_IDS)[2]: ids for name, ids in stored.items() if COORDS_IDS in name}
        if table and isinstance(module, CoordsIds):
            module.load_state_dict(table)
    for (key, tokenizer), name in zip(tokenizers.items(), names, strict=True):
        setting = f"backbone_{prefix}tokenizer_ckpt_paths"
        advice = f"set {setting}: {{{name}: /path/to/{tokenizer.variant.hub_file}}}."
        path = files.get(key)
        if path is None and any(f"{key}.quant_proj.weight" in stored_name for stored_name in stored):
            path = ckpt_path
        if path is None and pretrained:
            path = fetch_file(tokenizer.variant.name, tokenizer.variant.hub_repo, tokenizer.variant.hub_file, advice)
        if path is not None:
            logger.info("Tokenizer of %s. %s", name, load_tokenizer(tokenizer, path))
        elif ckpt_path is not None:
            raise WeightsError(f"{ckpt_path} holds no tokenizer of {name}, which {argument} needs: {advice}")
