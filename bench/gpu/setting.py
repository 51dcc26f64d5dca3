"""What the parts share: the device, the time that is left, and where results go."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

THEIRS, OURS = "TerraTorch", "ours"
EAGER, GRAPHS, DEFAULT = "eager", "graphs", "default"
"""Ways to run a model; the last two are modes of `terramind_plugin.CompiledModel`."""
CHANNELS = {"S2L2A": 12, "S1GRD": 2}
"""Modalities of the backbones and their bands."""


def side(who: str, mode: str = EAGER) -> str:
    """Return the name of a side of a comparison, e.g. 'ours, graphs'."""
    return f"{who}, {mode}"


REFERENCE = side(THEIRS)


@dataclass
class Measurement:
    """One number of one side."""

    case: str
    """What is measured, e.g. 'tiny 224, step'."""
    side: str
    """Whose, and how it runs; '' if there is one side only."""
    value: float | None
    """Median of the rounds, or the only value; None if there is none."""
    unit: str
    """'ms', 'MiB', 'TFLOP/s'; '' for counts and differences."""
    ratio: float | None = None
    """How many times as fast as the case's reference: the median of the rounds."""
    spread: tuple[float, float] | None = None
    """Least and greatest ratio of a round."""
    rounds: int = 0
    remark: str = ""
    """What a reader should know, e.g. why there is no value."""


@dataclass
class Setting:
    """Where and how a part measures.

    Args:
        device: Device of all models.
        quick: Tiny models, small images, two rounds: a test that it works.
        theirs: TerraTorch's builders by name.
        ends: When the part should be through, in seconds of `time.monotonic`.
        save: Called after each measurement.
    """

    device: torch.device
    quick: bool
    theirs: Mapping[str, Callable[..., nn.Module]]
    ends: float
    save: Callable[[], None]
    compile_only: bool = False
    """Whether nothing is measured: compiled works run once, so that later processes find them in torch's cache."""
    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Cases that were not measured, and why."""

    @property
    def is_cuda(self) -> bool:
        """Return whether the device is a GPU of NVIDIA or AMD."""
        return self.device.type == "cuda"

    def add(self, *measurements: Measurement) -> None:
        """Keep measurements, on disk, too."""
        self.measurements += measurements
        self.save()

    def leave_out(self, case: str, why: str) -> None:
        """Note that a case is not measured."""
        self.left_out.append(f"{case}: {why}")
        self.save()

    def seconds_left(self) -> float:
        """Return the seconds until the part should be through."""
        return self.ends - time.monotonic()

    def has_time(self, case: str, seconds: float) -> bool:
        """Return whether a case can begin, and note it as left out otherwise.

        Args:
            case: Its name.
            seconds: What it takes, at least; nothing is too long in a quick run.
        """
        if self.seconds_left() > (0.0 if self.quick else seconds):
            return True
        self.leave_out(case, "no time left")
        return False

    def synchronise(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def begin_step(self) -> None:
        """Say that what graphs returned before may be overwritten."""
        if self.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """Return bf16 autocast."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Return normal numbers on the device, the same in every run on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(self.device)

    def images(self, batch: int, pixels: int, names: Sequence[str] = tuple(CHANNELS)) -> dict[str, Tensor]:
        """Return standardised images [batch, bands, pixels, pixels] of some modalities."""
        return {name: self.random(batch, CHANNELS[name], pixels, pixels, seed=len(name)) for name in names}

    def release(self) -> None:
        """Forget what was compiled, and give unused memory back; models must not be referred to any more."""
        if "torch._dynamo" in sys.modules:  # imported by the first compilation
            torch._dynamo.reset()
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Set the precision of float32 matrix products and convolutions for a while.

    Args:
        name: 'highest' for float32, 'medium' for what TerraTorch's users get: TF32 on a GPU.
    """
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def first_line(error: BaseException) -> str:
    """Return what an error says, in one short line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


Work = Callable[[], Any]
