"""Whether both implementations, and the modes of ours, give the same numbers on the device."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.models import build_pair, chosen, compiled, failures, layers_of
from bench.gpu.setting import DEFAULT, EAGER, GRAPHS, OURS, THEIRS, Measurement, Setting, first_line, precision, side

FEATURES, GRADIENTS = "features", "gradients"
Outputs = dict[str, list[Tensor]]


def relative_difference(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Return the largest difference as a share of the largest value, of the tensor where that is largest."""
    worst = [(x.double().cpu() - y.double().cpu()).abs().max() / y.abs().max().cpu().clamp(min=1e-30)
             for x, y in zip(got, want, strict=True)]  # fmt: skip
    return float(torch.stack(worst).max())


def outputs_of(setting: Setting, model: Any, images: dict[str, Tensor], layers: Sequence[int], bf16: bool) -> Outputs:
    """Return the features of four layers, and the gradients of the parameters that get some, by name in order.

    Args:
        setting: Has the device, unless the model is on the CPU.
        model: A backbone without dropout.
        images: Its inputs, of its own type.
        layers: The four layers.
        bf16: Whether in bf16 autocast.
    """
    model.zero_grad(set_to_none=True)
    setting.begin_step()
    with setting.autocast(bf16):
        features = chosen(model(dict(images)), layers)
    # What a graph returned is overwritten by its next run.
    kept = [x.detach().clone() for x in features]
    weights = [setting.random(*x.shape, seed=5).to(x) for x in features]
    torch.stack([(x * w).float().mean() for x, w in zip(features, weights, strict=True)]).sum().backward()
    named = sorted((name.removeprefix("_orig_mod."), x.grad) for name, x in model.named_parameters())
    gradients = [x.detach().clone() for _, x in named if x is not None]
    model.zero_grad(set_to_none=True)
    return {FEATURES: kept, GRADIENTS: gradients}


def measure_parity(setting: Setting, size: str, pixels: int) -> None:
    """Compare features and gradients: with TerraTorch's, with float64 on the CPU, and between modes of ours."""
    case = f"{size} {pixels}"
    pair = build_pair(setting, size)
    images, layers = setting.images(2, pixels), layers_of(size)
    with precision("highest"):
        results = {who: outputs_of(setting, pair[who], images, layers, False) for who in (THEIRS, OURS)}
        _compare(setting, f"{case}, float32", "ours from TerraTorch", results[OURS], results[THEIRS])
        _compare_exact(setting, f"{case}, float32", pair, layers, pixels)
    exact = results[THEIRS]
    with precision("medium"):
        results = {who: outputs_of(setting, pair[who], images, layers, True) for who in (THEIRS, OURS)}
    _compare(setting, f"{case}, bf16", "ours from TerraTorch", results[OURS], results[THEIRS])
    for who in (THEIRS, OURS):
        _compare(setting, f"{case}, bf16", f"{who} from float32", results[who], exact)
    _compare_modes(setting, case, pair[OURS], images, layers)


def _compare(setting: Setting, case: str, names: str, got: Outputs, want: Outputs, remark: str = "") -> None:
    for kind in (FEATURES, GRADIENTS):
        apart = relative_difference(got[kind], want[kind])
        setting.add(Measurement(f"{case}, {kind}", names, apart, "", remark=remark))


def _compare_exact(setting: Setting, case: str, pair: dict[str, Any], layers: Sequence[int], pixels: int) -> None:
    """Compare both with TerraTorch's in float64 on the CPU, on one small sample."""
    small = {name: image[:1, :, : min(pixels, 128), : min(pixels, 128)] for name, image in
             setting.images(1, pixels).items()}  # fmt: skip
    double: nn.Module = copy.deepcopy(pair[THEIRS]).cpu().double()
    on_cpu = Setting(torch.device("cpu"), setting.quick, setting.theirs, setting.ends, setting.save)
    inputs = {name: image.cpu().double() for name, image in small.items()}
    want = outputs_of(on_cpu, double, inputs, layers, False)
    for who in (THEIRS, OURS):
        got = outputs_of(setting, pair[who], small, layers, False)
        _compare(setting, f"{case}, one sample", f"{who} from float64 on the CPU", got, want)


def _compare_modes(
    setting: Setting, case: str, model: nn.Module, images: dict[str, Tensor], layers: Sequence[int]
) -> None:
    """Compare ours as it is run, in bf16, with itself run eagerly."""
    want = outputs_of(setting, model, images, layers, True)
    for mode in (GRAPHS, DEFAULT) if setting.is_cuda else (GRAPHS,):
        if mode == DEFAULT and not setting.has_time(f"{case}, {mode}", 40):
            continue
        try:
            other = compiled(model, OURS, mode)
            for _ in range(3):  # graphs are captured after a few calls
                got = outputs_of(setting, other, images, layers, True)
            _compare(setting, f"{case}, bf16", f"{side(OURS, mode)} from {EAGER}", got, want, failures())
        except Exception as error:  # recorded: the other modes are still worth knowing
            setting.add(Measurement(f"{case}, bf16", side(OURS, mode), None, "", remark=first_line(error)))
