"""Loading weights from the hub or from disk into a model, with a report of what was and was not loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.model.checkpoints import backbone_settings, model_args_of, read_file, same_kind, shorten
from terramind_plugin.model.download import fetch_file
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.modalities import find
from terramind_plugin.model.variants import Variant

ANCHOR = "encoder_embeddings."
"""Part of the names of an encoder's weights in any model that contains it."""
DECODER_ANCHOR = "decoder_embeddings."
"""Part of the names of an encoder-decoder's weights in any model that contains it."""


class Loadable(Protocol):
    """Interface that loading needs from a model such as `TerraMindBackbone` or `EncoderDecoder`."""

    variant: Variant
    inputs: tuple[InputSpec, ...]
    patch_size: int
    img_size: tuple[int, int]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's weights."""
        ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tables that the model computes itself."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Copy weights into the model."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """Stored weights of an encoder, by their published names."""

    tensors: Mapping[str, Tensor]
    source: str
    """Origin of the weights, for messages."""
    bands: Mapping[str, Sequence[object]] | None = None
    """Bands in the configuration of the checkpoint's model, if it is stored; None for pre-trained weights."""


@dataclass
class LoadReport:
    """Report of a loaded checkpoint, by the model's names."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Weights of the model that the checkpoint lacks."""
    mismatched: list[str] = field(default_factory=list)
    """Weights that have another shape in the checkpoint."""
    fresh: list[str] = field(default_factory=list)
    """Weights that are new by the model's configuration and keep their initial values."""
    unexpected: list[str] = field(default_factory=list)
    """Weights of the checkpoint's encoder that the model does not have."""
    unused: int = 0
    """Number of tensors of parts that this model does not have (decoder, other modalities)."""

    def __str__(self) -> str:
        lines = [f"Weights from {self.source}: {len(self.loaded)} loaded, {self.unused} of other parts not used"]
        for title in ("missing", "mismatched", "unexpected", "fresh"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(map(shorten, names[:8])) + (f", and {len(names) - 8} more" if len(names) > 8 else "")
                lines.append(f"  {title} ({len(names)}): {shown}")
        return "\n".join(lines)

    def raise_if_incomplete(self) -> None:
        """Raise an error if a weight that the model needs was not loaded.

        Raises:
            WeightsError: A weight is missing or has another shape; the message is the report.
        """
        if self.missing or self.mismatched:
            raise WeightsError(
                f"{self}\nThe checkpoint does not fit the model: check the size of the backbone, its modalities and "
                "bands. A modality without pre-trained weights is given as {name: channels}."
            )


def fetch_published(variant: Variant) -> Path:
    """Return the local path of a variant's published weights, downloading them if needed.

    Args:
        variant: Model.

    Raises:
        WeightsNotFoundError: The weights are not in the local cache and the hub cannot be reached.
    """
    return fetch_file(
        variant.name,
        variant.hub_repo,
        variant.hub_file,
        f"set backbone_ckpt_path: /path/to/{variant.hub_file}\n"
        "or train from random weights with backbone_pretrained: false.",
    )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return the encoder weights in a file.

    Args:
        path: A published .pt file, a .safetensors file, or a Lightning .ckpt of a task that was fine-tuned with this
            backbone or with TerraTorch's own TerraMind. Only tensors and plain values are unpickled.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file cannot be read or holds no TerraMind encoder.
    """
    content, tensors = read_file(path)
    if any(".lora_A." in name for name in tensors):
        raise WeightsError(
            f"{path} holds LoRA adapters, which are not weights to start from. Make a plain checkpoint of them: "
            f"terramind merge --model {path} --out FILE, and give that one."
        )
    prefixes = {name.split(ANCHOR)[0] for name in tensors if ANCHOR in name}
    if not prefixes:
        raise WeightsError(f"{path} holds no TerraMind encoder: none of its {len(tensors)} names contains '{ANCHOR}'.")
    # The shortest prefix, since the generator inside a TiM model also contains an encoder.
    prefix = min(sorted(prefixes), key=len)
    encoder = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Checkpoint(tensors=encoder, source=str(path), bands=_configured_bands(content, path))


def _configured_bands(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Sequence[object]] | None:
    """Return the bands by modality in the configuration of a checkpoint's model.

    Raises:
        WeightsError: The checkpoint's settings are malformed.
    """
    bands = backbone_settings(model_args_of(content, path)).get("bands")
    if bands is None:
        return None
    if not isinstance(bands, Mapping) or not all(
        isinstance(name, str) and isinstance(names, Sequence) and not isinstance(names, str)
        for name, names in bands.items()
    ):
        raise WeightsError(f"{path}: its backbone_bands must name bands by modality, got {shorten(bands)}.")
    return bands


def load_backbone(model: Loadable, checkpoint: Checkpoint) -> LoadReport:
    """Copy a checkpoint into a backbone and return what was loaded.

    Patch weights are selected by band: the model's channels take the columns of their bands. Where the checkpoint does
    not say which bands it has, it has those of the pre-training data if it has as many, else those of the model.

    Args:
        model: A `TerraMindBackbone`.
        checkpoint: From `read_checkpoint`.

    Raises:
        WeightsError: A weight that the model needs is missing or has another shape.
    """
    # The generator and tokenizers of a TiM model are loaded separately.
    frozen = ("sampler.", "given_tokens.", "tokenizer.")
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}
    tables = {name for name, _ in model.named_buffers()}
    specs: dict[str, InputSpec] = {spec.key: spec for spec in model.inputs}
    report = LoadReport(source=checkpoint.source)
    chosen: dict[str, Tensor] = {}
    for name, target in own.items():
        key = name.split(".")[1] if name.startswith(ANCHOR) else None
        spec = specs.get(key) if key else None
        value = _find(checkpoint.tensors, name, spec)
        if name == "missing_mod_token" and value is not None and not value.isfinite().all():
            value = None  # TerraTorch leaves it uninitialised if no modality was missing
        if value is None:
            if name in tables:
                report.fresh.append(name)  # a fixed table, e.g. of positions, which the model computes itself
                continue
            is_new = name in ("register_tokens", "missing_mod_token") or (spec is not None and spec.pretrained is None)
            (report.fresh if is_new else report.missing).append(name)
            continue
        if spec is not None and name.endswith("proj.weight"):
            value = _select_bands(value, target, spec, checkpoint, report, model.patch_size)
        rows, columns = model.img_size
        if name.endswith(".pos_emb") and (value.shape != target.shape or rows != columns):
            # A fixed table, not a weight: the model has computed its own for its img_size.
            report.fresh.append(name)
        elif value.shape != target.shape:
            report.mismatched.append(f"{name} {list(value.shape)} instead of {list(target.shape)}")
        elif not same_kind(value, target):
            report.mismatched.append(f"{name} of {value.dtype} instead of {target.dtype}")
        else:
            chosen[name] = value
    report.loaded = list(chosen)
    parts = tuple(f"{part}." for part in ("encoder", "encoder_norm"))
    report.unexpected = [name for name in checkpoint.tensors if name.startswith(parts) and name not in own]
    report.unused = len(set(checkpoint.tensors) - set(own)) - len(report.unexpected)
    report.raise_if_incomplete()
    model.load_state_dict(chosen, strict=False)
    return report


def load_encoder_decoder(model: Loadable, path: str | Path | None = None) -> LoadReport:
    """Copy weights into an encoder-decoder and return what was loaded.

    Args:
        model: The encoder-decoder.
        path: A published file, or one that a model with an encoder-decoder inside was saved to; None for the published
            weights of the model's variant.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file holds no encoder-decoder, or a weight of the model is missing or has another shape.
    """
    path = fetch_published(model.variant) if path is None else path
    _, tensors = read_file(path)
    prefixes = sorted({name.split(DECODER_ANCHOR)[0] for name in tensors if DECODER_ANCHOR in name}, key=len)
    if not prefixes:
        raise WeightsError(
            f"{path} holds no TerraMind decoder: none of its {len(tensors)} names contains '{DECODER_ANCHOR}'. "
            f"A fine-tuned backbone cannot generate; use the published {model.variant.hub_file}."
        )
    own = {name.removeprefix(prefixes[0]): value for name, value in tensors.items() if name.startswith(prefixes[0])}
    return load_backbone(model, Checkpoint(tensors=own, source=str(path)))


def _find(tensors: Mapping[str, Tensor], name: str, spec: InputSpec | None) -> Tensor | None:
    """Return a stored weight.

    An embedding of an input's own starts from that of its modality. Scores of token ids have the weights of their
    embedding, which a file may hold once.
    """
    value = tensors.get(name)
    if value is None and spec is not None and spec.source_key not in (None, spec.key):
        value = tensors.get(f"{ANCHOR}{spec.source_key}{name.removeprefix(f'{ANCHOR}{spec.key}')}")
    return tensors.get(name.replace(".to_logits.", ".token_emb.")) if value is None else value


def _select_bands(
    stored: Tensor, target: Tensor, spec: InputSpec, checkpoint: Checkpoint, report: LoadReport, patch_size: int
) -> Tensor:
    """Return patch weights [dim, pixels * channels] with the columns of the model's bands.

    Columns of new bands keep the model's initial values.
    """
    if spec.pretrained is None:
        return stored
    pixels = patch_size**2
    stored_bands: list[int | None] = list(range(len(spec.pretrained.bands)))
    sources = list(stored_bands) if spec.band_sources is None else list(spec.band_sources)
    stored_names: list[str] = list(spec.pretrained.band_names)
    for name, bands in sorted((checkpoint.bands or {}).items(), key=lambda item: item[0] == spec.name):
        if name == spec.name or _same_modality(name, spec):
            stored_bands = [spec.pretrained.find_band(band) for band in bands]
            stored_names = [str(band) for band in bands]
    if stored_bands == sources or stored.shape != (target.shape[0], pixels * len(stored_bands)):
        return stored
    columns = torch.unflatten(stored, 1, (pixels, len(stored_bands)))
    selected = torch.unflatten(target.clone(), 1, (pixels, len(sources)))
    for channel, source in enumerate(sources):
        if source is None:
            report.fresh.append(f"{ANCHOR}{spec.key}.proj.weight, channel {channel}")
        elif source in stored_bands:
            selected[..., channel] = columns[..., stored_bands.index(source)]
        else:
            raise WeightsError(
                f"{checkpoint.source}: {spec.name} has no weights for band {spec.pretrained.bands[source].name}. "
                f"The checkpoint has {stored_names}. "
                "Remove the band, or name it in new_bands to start it from random weights."
            )
    return selected.flatten(1)


def _same_modality(name: str, spec: InputSpec) -> bool:
    modality = find(name)
    return modality is not None and modality is spec.pretrained


def load_weights(model: Loadable, *, pretrained: bool, ckpt_path: str | Path | None) -> LoadReport | None:
    """Load published or local weights into a backbone, according to its arguments.

    Args:
        model: A `TerraMindBackbone`.
        pretrained: Load the published weights of the model's variant.
        ckpt_path: File to load instead; it overrides `pretrained`.

    Returns:
        The report, or None if neither was asked for.

    Raises:
        WeightsError: See `read_checkpoint` and `load_backbone`.
    """
    if not isinstance(pretrained, bool):
        raise ConfigError(f"pretrained must be true or false, got {pretrained!r}. A file is given as ckpt_path.")
    if ckpt_path is None and not pretrained:
        return None
    return load_backbone(model, read_checkpoint(ckpt_path if ckpt_path is not None else fetch_published(model.variant)))
