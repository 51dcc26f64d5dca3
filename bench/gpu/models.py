"""Both implementations with equal weights, and what they are made to do."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.setting import CHANNELS, DEFAULT, EAGER, GRAPHS, OURS, THEIRS, Setting, Work
from terramind_plugin.backbones.network import compile_network
from terramind_plugin.builders import build_by_name, build_generator, build_image_tokenizer
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.model.compiled import CompiledCall
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.tokenizers.image import ImageTokenizer


def layers_of(size: str) -> list[int]:
    """Return the layers that a decoder uses: four, evenly spaced, the last one included."""
    depth = VARIANTS[f"terramind_v1_{size}"].depth
    return [depth * part // 4 - 1 for part in (1, 2, 3, 4)]


def scatter(model: nn.Module) -> None:
    """Move weights off zero: a new U-Net predicts nothing but zeros."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.add_(0.02 * noise.to(parameter.dtype))


def build_theirs(setting: Setting, name: str, **arguments: Any) -> Any:
    """Return a model of TerraTorch's on the device, with random weights.

    Args:
        setting: Has the builders.
        name: Name of a builder, e.g. 'terramind_v1_tiny'.
        arguments: Its arguments.
    """
    torch.manual_seed(0)
    # Built on the CPU, as users do: tensors that are not weights, such as those of schedulers, stay there.
    return setting.theirs[name](pretrained=False, **arguments).to(setting.device).eval()


def build_ours(setting: Setting, name: str, source: nn.Module, **arguments: Any) -> Any:
    """Return a model of this package on the device, with the weights of TerraTorch's.

    Args:
        setting: Has the device.
        name: Registered name.
        source: TerraTorch's model.
        arguments: Arguments of the builder.
    """
    build: Any = functools.partial(build_by_name, name)
    if name.endswith("_generate"):
        build = functools.partial(build_generator, name.removesuffix("_generate"))
    elif "_tokenizer_" in name:
        build = functools.partial(build_image_tokenizer, name)
    model = build(**arguments).to(setting.device)
    weights = source.state_dict()
    own = model.state_dict()
    if own.keys() <= weights.keys():  # TerraTorch's backbones hold more, e.g. tokenizers that they do not use
        weights = {key: weights[key] for key in own}
    model.load_state_dict(weights)  # tokenizers translate names themselves
    return model.eval()


def build_pair(setting: Setting, size: str, **arguments: Any) -> dict[str, Any]:
    """Return both backbones, as configurations use them: TerraTorch's with all layers, ours with four.

    Args:
        setting: Has the device.
        size: E.g. 'tiny' or 'base_tim'.
        arguments: Further arguments of ours.
    """
    name, modalities = f"terramind_v1_{size}", list(CHANNELS)
    theirs = build_theirs(setting, name, modalities=modalities, merge_method="mean")
    layers = layers_of(size.removesuffix("_tim"))
    ours = build_ours(setting, name, theirs, modalities=modalities, out_indices=layers, **arguments)
    return {THEIRS: theirs, OURS: ours}


def compiled(model: nn.Module, who: str, mode: str) -> Any:
    """Return a copy of a model that runs in a mode: ours as `CompiledModel` does it, TerraTorch's by torch.compile."""
    if mode == EAGER:
        return model
    model = copy.deepcopy(model)
    if who == OURS and isinstance(model, ImageTokenizer | TerraMindGenerator):
        return model.for_inference(mode)
    if who == OURS:
        compile_network(model, mode)
        return model
    if mode == GRAPHS:  # as ours, which leaves a model on a CPU as it is
        on_gpu = next(model.parameters()).is_cuda
        return torch.compile(model, mode="reduce-overhead") if on_gpu else model
    assert mode == DEFAULT
    return torch.compile(model)


def failures() -> str:
    """Return why compiled parts of ours that are in use run without compilation; '' if all is well."""
    # Not isinstance: it asks proxies of objects that are gone, which raise an error.
    calls = [one for one in gc.get_objects() if type(one) is CompiledCall]
    reasons = sorted({f"{call.name} runs without compilation: {call.failure}" for call in calls if call.failure})
    return " ".join(reasons)


def chosen(features: Sequence[Tensor], layers: Sequence[int]) -> list[Tensor]:
    """Return the layers that a decoder uses; a backbone built with out_indices has no others."""
    return [features[index] for index in layers]


def make_step(
    setting: Setting,
    model: nn.Module,
    images: Mapping[str, Tensor],
    layers: Sequence[int],
    mask: Mapping[str, Tensor] | None = None,
) -> Work:
    """Return one forward and backward pass of a backbone in bf16 autocast, in training mode.

    Args:
        setting: Has the device.
        model: Its mode is set when the step runs.
        images: Inputs.
        layers: Layers whose mean square is the loss.
        mask: Modality mask of ours.
    """
    more = {} if mask is None else {"modality_mask": dict(mask)}

    def step() -> None:
        if not model.training:
            model.train()
        with setting.autocast():
            features = chosen(model(dict(images), **more), layers)
        torch.stack([x.float().square().mean() for x in features]).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def make_forward(setting: Setting, model: nn.Module, images: Mapping[str, Tensor]) -> Work:
    """Return one forward pass in inference and bf16 autocast."""

    def forward() -> Any:
        if model.training:
            model.eval()
        with torch.inference_mode(), setting.autocast():
            return model(dict(images))

    return forward
