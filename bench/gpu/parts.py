"""The parts, in order of worth, their cases, and the time that each may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

Case = tuple[Any, ...]
"""Arguments of a part's function after the setting."""


class Part(NamedTuple):
    """One part: a function, and what it is called with, once a case."""

    module: str
    """Module of this folder that has the function, imported when the part runs."""
    function: str
    seconds: float
    """Time that all cases may take on a GPU."""
    cases: tuple[Case, ...] = ((),)
    """Those with an aim come first."""
    quick: tuple[Case, ...] = ((),)
    """Cases of a quick run."""
    needs: float = 5.0
    """Seconds that must be left when a case begins."""
    ahead: int = 0
    """Number of cases that are compiled ahead, see `ahead.py`."""
    alone: bool = False
    """Whether it runs in a process of its own, which imports TerraTorch itself."""

    def load(self) -> Callable[..., None]:
        """Return the function."""
        function: Callable[..., None] = getattr(importlib.import_module(f"bench.gpu.{self.module}"), self.function)
        return function


SIZES = (
    ("tiny", 224, 8), ("base", 224, 8), ("base", 512, 8), ("large", 224, 8), ("large", 512, 4), ("tiny", 512, 8),
)  # fmt: skip
"""Size, pixels and batch of backbones."""
COMPILED = (
    ("graphs", "tiny", 224, 8), ("default", "base", 512, 8), ("graphs", "base", 224, 8), ("default", "large", 512, 4),
    ("graphs", "base", 512, 8), ("default", "base", 224, 8), ("default", "tiny", 224, 8), ("graphs", "large", 224, 8),
    ("default", "large", 224, 8), ("graphs", "tiny", 512, 8), ("default", "tiny", 512, 8), ("graphs", "large", 512, 4),
)  # fmt: skip
"""Mode, size, pixels and batch of steps that both compile."""
QUICK = ("tiny", 64, 2)
PARITY = "parity"
"""Part that times nothing: it runs while others are compiled ahead."""
PARTS = {
    PARITY: Part("parity", "measure_parity", 60, (("tiny", 224), ("base", 224), ("base", 512)), (("tiny", 64),)),
    "ceilings": Part("ceilings", "measure_ceilings", 15),
    "steps": Part("steps", "measure_steps", 110, SIZES, (QUICK,), 12, ahead=6),
    "thinking": Part("thinking", "measure_thinking", 60, (("base", 224, 8), ("base", 512, 4)), (QUICK,), 20, ahead=2),
    "decoding": Part("decoding", "measure_decoding", 40, ((224, 8), (512, 8)), ((64, 2),), 12, ahead=2),
    "waits": Part("waits", "measure_waits", 50, (("backbone", "tiny", 224, 8), ("TiM", "tiny", 224, 8),
                  ("decoder", "", 224, 8)), (("backbone", *QUICK), ("TiM", *QUICK), ("decoder", "", 64, 2)), 8,
                  ahead=2),
    "memory": Part("steps", "measure_memory", 35, (("base", 512, 8), ("tiny", 224, 8), ("large", 512, 4)), (QUICK,),
                   12, ahead=1),
    "scene": Part("scene", "measure_scene", 30, (("base", 4096),), (("tiny", 256),)),
    "generation": Part("decoding", "measure_generation", 75, (("base", 224, 8),), (("tiny", 64, 1),), ahead=1),
    "compiled": Part("steps", "measure_compiled", 120, COMPILED, (("default", *QUICK),), 20, ahead=4),
    "loader": Part("loader", "measure_loader", 25, alone=True),
}  # fmt: skip
"""What does not fit into its time is left out and named; `REST` takes what the others leave."""
REST = "compiled"
TOTAL = 475.0
"""Seconds of the whole run."""
AHEAD = 120.0
"""Seconds for compiling ahead, with parity beside it."""
START = 20.0
"""Seconds that a process needs before its first part, about."""
GRACE = 20.0
"""Seconds after its time when a part is stopped that did not end by itself."""
