"""The parts, in order of worth, and the time that each may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.gpu.setting import Setting


class Part(NamedTuple):
    """One part."""

    module: str
    """Module of this folder that has the function, imported when the part runs."""
    function: str
    seconds: float
    """Time that it may take on a GPU."""
    alone: bool = False
    """Whether it runs in a process of its own, which imports TerraTorch itself."""

    def load(self) -> Callable[[Setting], None]:
        """Return the function."""
        import importlib

        function: Callable[[Setting], None] = getattr(
            importlib.import_module(f"bench.gpu.{self.module}"), self.function
        )
        return function


PARTS = {
    "ceilings": Part("ceilings", "measure_ceilings", 15),
    "parity": Part("parity", "measure_parity", 45),
    "steps": Part("steps", "measure_steps", 110),
    "thinking": Part("thinking", "measure_thinking", 60),
    "decoding": Part("decoding", "measure_decoding", 45),
    "generation": Part("decoding", "measure_generation", 40),
    "waits": Part("waits", "measure_waits", 35),
    "memory": Part("steps", "measure_memory", 35),
    "scene": Part("scene", "measure_scene", 30),
    "compiled": Part("steps", "measure_compiled", 120),
    "loader": Part("loader", "measure_loader", 25, alone=True),
}
"""What does not fit into its time is left out and named; `REST` takes what the others leave."""
REST = "compiled"
TOTAL = 465.0
"""Seconds of the whole run."""
START = 20.0
"""Seconds that a process needs before its first part, about."""
GRACE = 20.0
"""Seconds after its time when a part is stopped that did not end by itself."""
