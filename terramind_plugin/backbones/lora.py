"""Low-rank adapters in a backbone, which are trained while the backbone's weights are frozen.

Source: LoRA (arXiv:2106.09685); the layers are those of Hugging Face's peft.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, WeightsError, suggest
from terramind_plugin.model.checkpoints import check_stored, hash_weights
from terramind_plugin.model.inputs import InputSpec

BASE = "base_sha256"
"""Key in a state dict of the SHA-256 of the weights that adapters were trained on."""
ADAPTER = "default"
"""peft's name for the only adapter of a model."""
TARGETS = {
    "attention": ("attn.qkv", "attn.proj"),
    "mlp": ("mlp.fc1", "mlp.fc2", "mlp.fc3"),
    "all": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.fc3"),
}
"""Linear layers of a block by the value of `target`; only sizes with gated layers have fc3."""


class Adaptable(Protocol):
    """Interface of a model that adapters need, such as `TerraMindBackbone`."""

    inputs: tuple[InputSpec, ...]
    layers: tuple[int, ...]
    trained: frozenset[str] | None


@dataclass(frozen=True)
class LoraSettings:
    """Settings of `backbone_lora`."""

    rank: int = 16
    """Width of the adapters."""
    alpha: float | None = None
    """Scale of the adapters' output multiplied by the rank; None for 2 * rank."""
    dropout: float = 0.0
    """Dropout of the adapters' input."""
    target: str = "attention"
    """Layers that get adapters: 'attention', 'mlp' or 'all'."""

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ConfigError(f"lora: rank must be a whole number of at least 1, got {self.rank!r}.")
        if self.alpha is not None and (not _is_number(self.alpha) or not 0 < self.alpha < float("inf")):
            raise ConfigError(f"lora: alpha must be a number greater than 0, got {self.alpha!r}.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"lora: dropout must be at least 0 and less than 1, got {self.dropout!r}.")
        if self.target not in TARGETS:
            raise ConfigError(
                f"lora: unknown target {self.target!r}.{suggest(str(self.target), TARGETS)} "
                f"Choose one of {', '.join(TARGETS)}."
            )

    @property
    def scaled_by(self) -> float:
        """Return alpha, or its default."""
        return 2 * self.rank if self.alpha is None else self.alpha


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_settings(given: Any) -> LoraSettings | None:
    """Return the settings of `backbone_lora`, or None for no adapters.

    Args:
        given: Mapping with some of rank, alpha, dropout and target; True for the defaults; None or False for no
            adapters. Values may be texts, as on the command line.

    Raises:
        ConfigError: A key is unknown or a value not possible.
    """
    if given is None or given is False:
        return None
    if given is True:
        return LoraSettings()
    keys = [field.name for field in fields(LoraSettings)]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"lora must hold {', '.join(keys)}, got {given!r}. "
            "Write backbone_lora: {rank: 16, alpha: 32, dropout: 0.1, target: attention}."
        )
    for key in given:
        if key not in keys:
            raise ConfigError(f"lora has no key '{key}'.{suggest(str(key), keys)} Its keys are: {', '.join(keys)}.")
    values = {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in given.items()}
    return LoraSettings(**values)


def add_lora(model: Any, settings: LoraSettings) -> None:
    """Put adapters into a backbone, in place, and freeze its other pre-trained weights.

    Parameters without pre-trained weights are trained in full: embeddings of new modalities and of modalities with new
    bands, register tokens and the token for missing modalities. The layer qkv gets one adapter, in which queries, keys
    and values share the projection down and have their own projections up. Neither a generator nor blocks behind the
    last returned layer get adapters.

    The model's state dict then holds the trained parameters and the SHA-256 of the others. Only a state dict of this
    kind with the same SHA-256 can be loaded.

    Args:
        model: A `TerraMindBackbone` that has its weights.
        settings: Kind of adapters.

    Raises:
        ConfigError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"lora needs the package peft, and '{error.name}' is not installed: pip install 'terramind-plugin[lora]', "
            "or pip install peft."
        ) from error
    fresh = _fresh(model)
    fingerprint = hash_base(model.state_dict(), fresh)
    blocks = "|".join(str(index) for index in range(max(model.layers) + 1))
    layers = "|".join(TARGETS[settings.target]).replace(".", r"\.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scaled_by,  # type: ignore[arg-type]  # peft divides it, whatever number it is
        lora_dropout=settings.dropout,
        target_modules=rf"encoder\.({blocks})\.({layers})",
    )
    inject_adapter_in_model(config, model, ADAPTER)
    model.train(model.training)  # peft's layers start in training mode, whatever the model's mode
    model.trained = find_adapters(model) | fresh
    model.base = fingerprint
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.trained)
    model.held = frozenset(name for name in model.state_dict() if name not in model.trained)
    model.adapter_hooks = (
        model.register_state_dict_post_hook(_leave_out_base),
        model.register_load_state_dict_pre_hook(_add_base),
    )


def merge_lora(model: Any) -> int:
    """Merge a backbone's adapters into its weights in place, and return the number of adapters.

    Args:
        model: A `TerraMindBackbone` with adapters from `add_lora`.
    """
    from peft.tuners.lora import LoraLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    for hook in model.adapter_hooks:
        hook.remove()
    model.trained = None
    model.unfreeze()
    return len(layers)


def _fresh(model: Adaptable) -> frozenset[str]:
    """Return the names of the parameters for which there are no pre-trained weights."""
    assert isinstance(model, nn.Module)
    names = set()
    for spec in model.inputs:
        embedding = f"encoder_embeddings.{spec.key}."
        if spec.pretrained is None:
            names |= {name for name, _ in model.named_parameters() if name.startswith(embedding)}
        elif None in (spec.band_sources or ()):
            names.add(f"{embedding}proj.weight")
    tokens = {name for name, _ in model.named_parameters() if name in ("register_tokens", "missing_mod_token")}
    return frozenset(names | tokens)


def find_adapters(model: nn.Module) -> frozenset[str]:
    """Return the names of a model's parameters that peft has added."""
    return frozenset(name for name, _ in model.named_parameters() if ".lora_" in name or ".modules_to_save." in name)


def trained_parameters(model: Any) -> frozenset[str] | None:
    """Return the names of the trained parameters of a backbone with adapters; None for a backbone without adapters.

    Args:
        model: A `TerraMindBackbone`, with adapters of this package or of TerraTorch's `peft_config`.
    """
    return model.trained if model.trained is not None else (find_adapters(model) or None)


def hash_base(tensors: Mapping[str, Tensor], without: Iterable[str] = ()) -> str:
    """Return the SHA-256 of the weights that adapters are trained on, as 64 hexadecimal digits.

    Args:
        tensors: Weights by name. Tables of positions are left out, because they follow from the image size.
        without: Names to leave out.
    """
    left_out = set(without)
    counted = {name: x for name, x in tensors.items() if name not in left_out and not name.endswith("pos_emb")}
    return hash_weights(counted, typed=True)


def _leave_out_base(module: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the frozen weights by their SHA-256."""
    for name in module.held:
        state_dict.pop(f"{prefix}{name}", None)
    state_dict[f"{prefix}{BASE}"] = torch.tensor(list(bytes.fromhex(module.base)), dtype=torch.uint8)


def _add_base(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Check that a checkpoint's adapters belong to this base, and add the frozen weights.

    Raises:
        WeightsError: The checkpoint holds no adapters, or belongs to another base.
    """
    stored = state_dict.pop(f"{prefix}{BASE}", None)
    if stored is None:
        raise WeightsError(
            "The checkpoint holds no adapters made with backbone_lora, which this model has. To test or resume it, "
            "leave backbone_lora out; to start adapters from its backbone, give the file as backbone_ckpt_path."
        )
    check_stored(stored, torch.uint8, (32,), BASE)
    found = bytes(stored.tolist()).hex()
    if found != module.base:
        raise WeightsError(
            f"The checkpoint holds adapters to other weights (SHA-256 {found}) than this backbone has "
            f"({module.base}). Load those of the run that made it, with backbone_pretrained or backbone_ckpt_path, for "
            "the same modalities and bands; if that run started from random weights, with its seed_everything. "
            "A merged checkpoint needs no base: terramind merge."
        )
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for name in module.held:
        state_dict[f"{prefix}{name}"] = own[name].detach()


def refuse_adapters(model: Any) -> None:
    """Make a backbone without adapters refuse checkpoints with adapters."""
    model.register_load_state_dict_pre_hook(_refuse_adapters)


def _refuse_adapters(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raise a WeightsError if a checkpoint holds adapters."""
    if module.trained is None and f"{prefix}{BASE}" in state_dict:
        raise WeightsError(
            "The checkpoint holds adapters made with backbone_lora and not the backbone's weights. Set backbone_lora "
            "as in the run that made it, or make a plain checkpoint of it: terramind merge --model FILE --out FILE."
        )
