"""The implementations with equal weights, and one round of each kind of work."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from terratorch.tasks import SemanticSegmentationTask
from torch import Tensor, nn

import terramind_plugin  # noqa: F401  registers our names
from bench.cases import Case

MODALITIES = {"S2L1C": 13, "S1GRD": 2}
LAYERS = [2, 5, 8, 11]
BATCH, PIXELS, CLASSES = 2, 224, 2

NECKS: list[dict[str, Any]] = [
    {"name": "SelectIndices", "indices": LAYERS},
    {"name": "ReshapeTokensToImage", "remove_cls_token": False},
    {"name": "LearnedInterpolateToPyramidal"},
]
OWN_NECKS: list[dict[str, Any]] = [{"name": "terramind_pyramid", "indices": LAYERS}]


def build_task(
    implementation: str,
    size: str,
    *,
    modalities: Mapping[str, int] = MODALITIES,
    freeze: bool = False,
    more: Mapping[str, Any] | None = None,
) -> SemanticSegmentationTask:
    """Return a segmentation task as a configuration would build it, with random weights.

    Args:
        implementation: Key of `cases.IMPLEMENTATIONS`.
        size: Size of the backbone.
        modalities: Bands by modality.
        freeze: Whether the backbone is frozen.
        more: Further arguments of the model.
    """
    own_necks = implementation == "own necks"
    arguments: dict[str, Any] = {
        "backbone": f"{'terratorch_' if implementation == 'reference' else ''}terramind_v1_{size}",
        "backbone_pretrained": False,
        "backbone_modalities": list(modalities),
        "backbone_merge_method": "mean",
        "necks": [dict(neck) for neck in (OWN_NECKS if own_necks else NECKS)],
        "decoder": "terramind_unet" if own_necks else "UNetDecoder",
        "decoder_channels": [512, 256, 128, 64],
        "num_classes": CLASSES,
    }
    if own_necks:
        arguments["backbone_out_indices"] = LAYERS
    return SemanticSegmentationTask(
        model_args={**arguments, **(more or {})},
        model_factory="EncoderDecoderFactory",
        loss="dice",
        ignore_index=-1,
        plot_on_val=False,
        freeze_backbone=freeze,
    )


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all weights of a task's model into another implementation's.

    Args:
        source: Model of the reference.
        target: Model of ours; its layers have the same names, but its neck may stand at another position.
    """

    def without_position(name: str) -> str:
        return re.sub(r"neck\.\d+\.", "neck.", name)

    wanted = {without_position(name): name for name in target.state_dict()}
    weights = {without_position(name): x for name, x in source.state_dict().items()}
    # TerraTorch's thinking models hold a tokenizer besides, which they never use.
    target.load_state_dict({own: weights[name] for name, own in wanted.items()})


def make_inputs(seed: int = 0, modalities: Mapping[str, int] = MODALITIES) -> tuple[dict[str, Tensor], Tensor]:
    """Return standardised images by modality and labels [batch, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    images = {
        name: torch.randn(BATCH, channels, PIXELS, PIXELS, generator=generator) for name, channels in modalities.items()
    }
    return images, torch.randint(0, CLASSES, (BATCH, PIXELS, PIXELS), generator=generator)


def select_layers(features: Any) -> list[Tensor]:
    """Return the layers a decoder uses; a backbone built with out_indices has no others."""
    return [features[index] for index in LAYERS]


def make_round(
    task: SemanticSegmentationTask, case: Case, modalities: Mapping[str, int] = MODALITIES
) -> Callable[[], Any]:
    """Return a function that does the case's work once.

    Args:
        task: Its model is put into training or evaluation mode.
        case: What to do.
        modalities: What the model is given.
    """
    images, labels = make_inputs(modalities=modalities)
    model = task.model
    model.train(case.work != "forward")

    def forward() -> list[Tensor]:
        with torch.inference_mode(), case.autocast():
            return list(model.encoder(dict(images)))

    def backbone_step() -> None:
        with case.autocast():
            features = select_layers(model.encoder(dict(images)))
        torch.stack([x.float().square().mean() for x in features]).sum().backward()
        model.zero_grad(set_to_none=True)

    def training_step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with case.autocast():
            loss = task.criterion(model(dict(images)).output, labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    if case.work == "forward":
        return forward
    if case.work == "backbone step":
        return backbone_step
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    return training_step


def outputs_of(task: SemanticSegmentationTask, case: Case) -> list[Tensor]:
    """Return what should not depend on the implementation, in double precision.

    Args:
        task: A task without dropout.
        case: For 'forward' the result is the features that a decoder uses, else the gradients of the parameters; the
            two need not take the same path through the attention.
    """
    images, _ = make_inputs(seed=1)
    encoder = task.model.encoder.eval()
    with torch.set_grad_enabled(case.work != "forward"), case.context():
        with case.autocast():
            features = select_layers(encoder(dict(images)))
        if case.work == "forward":
            return [x.double() for x in features]
        generator = torch.Generator().manual_seed(2)
        loss = torch.stack([(x * torch.randn(x.shape, generator=generator)).mean() for x in features]).sum()
        named = sorted((name, x) for name, x in encoder.named_parameters() if x.requires_grad)
        gradients = torch.autograd.grad(loss, [x for _, x in named], allow_unused=True)
    return [x.double() for x in gradients if x is not None]


def relative_difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the largest difference as a share of the largest value, of the tensor where that is largest."""
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(got, want, strict=True))


def build_all(implementations: Mapping[str, str], size: str) -> dict[str, SemanticSegmentationTask]:
    """Return a task for each implementation, all with the weights of the first."""
    torch.manual_seed(0)
    tasks = {name: build_task(name, size) for name in implementations}
    first = next(iter(tasks.values()))
    for task in tasks.values():
        if task is not first:
            copy_weights(first.model, task.model)
    return tasks
