"""Options that several commands share; no heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
