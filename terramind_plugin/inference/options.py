"""Options that several commands share; no heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terramind_plugin.model.variants import Variant


@dataclass(frozen=True)
class ModelArguments:
    """Model.

    Args:
        model: Registry name such as terramind_sim_nano, path of a checkpoint, or hub:ORG/NAME.
        pretrained: Published weights, or those that ship; false for random ones, to see that it runs.
        ckpt_path: Weights to take instead, beside a registry name.
    """

    model: str = "terramind_v1_base"
    pretrained: bool = True
    ckpt_path: Path | None = None

    def look_up(self) -> tuple[Variant, Path | None]:
        """Return the architecture, and the file of weights; None for the published or random ones.

        Raises:
            ConfigError: There is no such model.
            WeightsError: A file of weights is not there, or holds no known model.
        """
        from terramind_plugin.model.lookup import look_up_model

        return look_up_model(self.model, self.ckpt_path)


@dataclass(frozen=True)
class WindowArguments:
    """Windows and machines.

    Args:
        crop: Height and width of a window in pixels (default: as the images of the training).
        stride: Pixels from one window to the next (default: 0.85 of a crop).
        margin: Pixels at the edge of a window that do not count.
        batch_size: Windows at once.
        precision: Precision of numbers; bf16 takes half the time.
        cog: Write Cloud-Optimized GeoTIFFs.
        restart: Do not go on with an unfinished run.
        accelerator: cpu, gpu, cuda or mps; auto for what is there.
        devices: Processes on a machine.
        nodes: Machines.
    """

    crop: int | None = None
    stride: int | None = None
    margin: int = 8
    batch_size: int = 8
    precision: Literal["32", "bf16", "16"] = "32"
    cog: bool = False
    restart: bool = False
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
