"""Images from token ids, and from one modality to others."""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu.models import build_ours, build_theirs, compiled, scatter
from bench.gpu.parity import relative_difference
from bench.gpu.setting import (
    EAGER,
    GRAPHS,
    OURS,
    THEIRS,
    Measurement,
    Setting,
    Work,
    precision,
    side,
)
from bench.gpu.timing import compare

NAME = "terramind_v1_tokenizer_s2l2a"
STEPS, QUICK_STEPS = 10, 2
OUTPUTS, QUICK_OUTPUTS = ["S1GRD", "DEM", "LULC"], ["S1GRD"]
AS_USED = f"{THEIRS}, float32 medium"
"""TerraTorch's as its users run it: importing TerraTorch sets this precision, and nothing sets autocast."""


def in_inference(setting: Setting, work: Work, *, bf16: bool) -> Work:
    """Return the same work in inference, in bf16 autocast or in TF32."""

    def run() -> Any:
        with torch.inference_mode(), precision("medium"), setting.autocast(bf16):
            return work()

    return run


def steps_of(setting: Setting) -> int:
    """Return the number of denoising steps."""
    return QUICK_STEPS if setting.quick else STEPS


def measure_decoding(setting: Setting, pixels: int, batch: int) -> None:
    """Measure the decoder of S2L2A in ten steps, and how far images are apart."""
    case = f"decode S2L2A {pixels}, {steps_of(setting)} steps"
    theirs = build_theirs(setting, NAME)
    scatter(theirs)
    ours = build_ours(setting, NAME, theirs, encoder=False)
    for model in (theirs, ours):
        model.requires_grad_(False)
    grid = pixels // 16
    tokens = torch.randint(0, 15_360, (batch, grid, grid), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(setting.device)

    def decode(model: Any, **noise: Any) -> torch.Tensor:
        """Return images, of noise from the CPU unless another one is given: TerraTorch's takes no other."""
        drawn = noise or {"generator": torch.Generator().manual_seed(1)}
        image: torch.Tensor = model.decode_tokens(tokens, timesteps=steps_of(setting), verbose=False, **drawn)
        return image

    def decode_ours(model: Any) -> torch.Tensor:
        return decode(model, noise=torch.randn(batch, 12, pixels, pixels, device=setting.device))

    works = {
        AS_USED: in_inference(setting, lambda: decode(theirs), bf16=False),
        f"{THEIRS}, bf16": in_inference(setting, lambda: decode(theirs), bf16=True),
        side(OURS, EAGER): in_inference(setting, lambda: decode_ours(ours), bf16=True),
    }
    _check_images(setting, case, lambda: decode(theirs), lambda: decode(ours))
    graphs = compiled(ours, OURS, GRAPHS)
    works[side(OURS, GRAPHS)] = in_inference(setting, lambda: decode_ours(graphs), bf16=True)
    compare(setting, case, works, AS_USED, seconds=6.0)


def _check_images(setting: Setting, case: str, theirs: Work, ours: Work) -> None:
    """Compare images from one noise, in float32 and as both are used."""
    with torch.inference_mode():
        with precision("highest"):
            want, got = theirs(), ours()
        setting.add(Measurement(f"{case}, float32", "ours from TerraTorch", relative_difference([got], [want]), ""))
        with precision("medium"), setting.autocast():
            got = ours()
        setting.add(Measurement(f"{case}, bf16", "ours from float32", relative_difference([got], [want]), ""))


def measure_generation(setting: Setting, size: str, pixels: int, batch: int) -> None:
    """Measure S2L2A to three modalities, in ten steps an image."""
    outputs = QUICK_OUTPUTS if setting.quick else OUTPUTS
    case = f"{size} {pixels}, S2L2A to {', '.join(outputs)}"
    arguments = {"modalities": ["S2L2A"], "output_modalities": outputs}
    theirs = build_theirs(setting, f"terramind_v1_{size}_generate", **arguments)
    scatter(theirs)
    theirs.requires_grad_(False)
    ours = build_ours(setting, f"terramind_v1_{size}_generate", theirs, **arguments)
    ours.requires_grad_(False)
    image = setting.images(batch, pixels, ["S2L2A"])

    def generate(model: Any) -> Any:
        return model(dict(image), timesteps=steps_of(setting))

    works = {
        AS_USED: in_inference(setting, lambda: generate(theirs), bf16=False),
        side(OURS, EAGER): in_inference(setting, lambda: generate(ours), bf16=True),
    }
    if not setting.quick:
        works[f"{THEIRS}, bf16"] = in_inference(setting, lambda: generate(theirs), bf16=True)
    compare(setting, case, works, AS_USED, seconds=8.0)
    if setting.has_time(f"{case}, {GRAPHS}", 40):  # nine graphs, which take minutes to compile
        graphs = compiled(ours, OURS, GRAPHS)
        works = {
            AS_USED: works[AS_USED],
            side(OURS, GRAPHS): in_inference(setting, lambda: generate(graphs), bf16=True),
        }
        compare(setting, f"{case}, {GRAPHS}", works, AS_USED, seconds=8.0)
