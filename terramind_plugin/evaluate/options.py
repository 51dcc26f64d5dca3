"""Options that the commands of evaluation share; no heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terramind_plugin.inference.options import Options


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
        compile: Compiled graphs of the model: graphs on a GPU alone, default on any device, or off.
    """

    modality: str
    out: Path
    bands: list[str] | None = None
    batch_size: int = 16
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    compile: Literal["graphs", "default", "off"] = "graphs"
