"""Options that the commands of evaluation share; no heavy import."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from terramind_plugin.inference.options import Options, choose_mode


@dataclass(frozen=True)
class ZeroShotOptions(Options):
    """Windows, machines and files.

    Args:
        out: Folder to write to.
    """

    out: Path = Path("zero_shot")


@dataclass(frozen=True)
class ChipOptions:
    """Chips and results.

    Args:
        modality: Modality of the chips, e.g. S2L2A.
        out: Folder to write to.
        bands: Order of the files' bands, if it is another, e.g. B04,B03,B02.
        batch_size: Chips at once.
        accelerator: Kind of device; auto takes a GPU if there is one.
        compile: Compilation of the model: graphs only on a GPU, default on any device, or off; auto means graphs
            for 1000 batches or more, since compiling takes a minute.
    """

    modality: str
    out: Path
    bands: list[str] | None = None
    batch_size: int = 16
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    compile: Literal["auto", "graphs", "default", "off"] = "auto"

    def mode_for(self, chips: Sized) -> Any:
        """Return the mode of compilation for a number of chips, see `compile_model`."""
        return choose_mode(self.compile, len(chips) // self.batch_size)
