"""Tokenizers, generators and Thinking-in-Modalities beside TerraTorch's, with equal weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from terratorch.registry import BACKBONE_REGISTRY, FULL_MODEL_REGISTRY
from torch import Tensor, nn

from bench.cases import Case
from bench.compare import Pair, Row, Side, Work, compare, in_precision
from bench.measure import say
from bench.models import MODALITIES, PIXELS, build_task, copy_weights, make_inputs, make_round
from bench.timing import Clock

THEIRS, OURS = "TerraTorch", "ours"
STEPS = 10
OUTPUTS = ["S1GRD", "DEM", "LULC"]
SIDES = [Side(who, precision) for precision in ("float32", "bf16") for who in (THEIRS, OURS)]


def pairs(float32: float | None = None, bf16: float | None = None, both: float | None = None) -> list[Pair]:
    """Return the pairs with their aims; `both` is ours in bf16 beside TerraTorch's in its default precision."""
    theirs, ours, theirs_bf16, ours_bf16 = SIDES
    return [Pair(theirs, ours, float32), Pair(theirs_bf16, ours_bf16, bf16), Pair(theirs, ours_bf16, both)]


def on_all_sides(works: Mapping[str, Work]) -> dict[Side, Work]:
    """Return the works of both implementations, in inference and in each precision."""
    return {side: in_precision(torch.inference_mode()(works[side.who]), side.precision) for side in SIDES}


def scatter(model: nn.Module) -> nn.Module:
    """Move weights off zero: a new U-Net predicts nothing but zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def measure_tokenizer(rounds: int, clock: Clock) -> tuple[list[Row], list[str]]:
    """Return times of the S2L2A tokenizer, and how far its pictures are apart."""
    say("tokenizer: build")
    name = "terramind_v1_tokenizer_s2l2a"
    theirs = scatter(FULL_MODEL_REGISTRY.build(f"terratorch_{name}")).eval().requires_grad_(False)
    ours = FULL_MODEL_REGISTRY.build(name).requires_grad_(False)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    image = torch.randn(1, 12, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    tokens = ours.tokenize(image)

    def decode(model: Any, steps: int) -> Tensor:
        return model.decode_tokens(tokens, timesteps=steps, generator=torch.Generator().manual_seed(1))

    works = {
        "encode": lambda model: model.encode(image),
        "decode, one U-Net step": lambda model: decode(model, 1),
        f"decode, {STEPS} U-Net steps": lambda model: decode(model, STEPS),
    }
    aims = {"encode": pairs(1.0), f"decode, {STEPS} U-Net steps": pairs(1.0, None, 1.8)}
    rows = []
    for work, do in works.items():
        sides = on_all_sides({THEIRS: lambda do=do: do(theirs), OURS: lambda do=do: do(ours)})
        rows += compare("base", work, sides, aims.get(work, pairs()), rounds, clock)
    images = {}
    for side, model in zip(SIDES, (theirs, ours, theirs, ours), strict=True):
        case = Case("", "", side.precision)
        with torch.inference_mode(), case.context(), case.autocast():
            images[side] = decode(model, STEPS)
    return rows, [f"{side} from {SIDES[0]}: {psnr(images[side], images[SIDES[0]])}" for side in SIDES[1:]]


def psnr(image: Tensor, reference: Tensor) -> str:
    """Return the peak signal-to-noise ratio of two images with values from -1 to 1, in dB."""
    error = float((image.double() - reference.double()).square().mean())
    return "equal" if error == 0 else f"{10 * math.log10(4 / error):.0f} dB"


def measure_generator(size: str, rounds: int, clock: Clock) -> list[Row]:
    """Return times from S2L2A to three modalities."""
    say(f"generator {size}: build")
    name, arguments = f"terramind_v1_{size}_generate", {"modalities": ["S2L2A"], "output_modalities": OUTPUTS}
    theirs = scatter(FULL_MODEL_REGISTRY.build(f"terratorch_{name}", **arguments)).eval().requires_grad_(False)
    ours = FULL_MODEL_REGISTRY.build(name, **arguments).requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 12, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    sides = on_all_sides(
        {
            THEIRS: lambda: theirs({"S2L2A": image}, timesteps=STEPS),
            OURS: lambda: ours({"S2L2A": image}, timesteps=STEPS),
        }
    )
    return compare(size, f"S2L2A to {', '.join(OUTPUTS)}", sides, pairs(1.0, None, 1.8), rounds, clock)


def measure_thinking(size: str, rounds: int, clock: Clock) -> list[Row]:
    """Return times of a TiM backbone."""
    say(f"thinking {size}: build")
    torch.manual_seed(0)
    theirs, ours = (
        BACKBONE_REGISTRY.build(f"{prefix}terramind_v1_{size}_tim", modalities=list(MODALITIES)).eval()
        for prefix in ("terratorch_", "")
    )
    ours.load_state_dict(theirs.state_dict())
    images, _ = make_inputs()
    sides = on_all_sides({THEIRS: lambda: theirs(dict(images)), OURS: lambda: ours(dict(images))})
    return compare(size, "TiM forward", sides, pairs(1.0, 1.25), rounds, clock)


def measure_thinking_step(size: str, rounds: int, clock: Clock) -> list[Row]:
    """Return times of a training step of a task with a TiM backbone."""
    say(f"training a thinking {size}: build")
    torch.manual_seed(0)
    tasks = {who: build_task(name, f"{size}_tim") for who, name in ((THEIRS, "reference"), (OURS, "own necks"))}
    copy_weights(tasks[THEIRS].model, tasks[OURS].model)
    steps = {}
    for side in SIDES:
        case = Case(size, "training step", side.precision)
        steps[side] = in_precision(make_round(tasks[side.who], case), side.precision, autocast=False)
    return compare(size, "TiM training step", steps, pairs(1.0), rounds, clock)
