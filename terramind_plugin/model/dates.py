"""Number of dates that a model takes."""

from __future__ import annotations

from dataclasses import dataclass

from terramind_plugin.errors import counted


@dataclass(frozen=True)
class DatesTaken:
    """Number of dates that a model expects."""

    count: int
    reason: str
    """Setting that requires this number, e.g. 'temporal_pooling: diff'."""

    def refuse(self, where: str, found: int) -> str:
        """Return the error message for files with another number of dates.

        Args:
            where: Name of the files, e.g. 'scene.tif: S2L2A'.
            found: Their number of dates.
        """
        return f"{where} has {counted(found, 'date')}, expected {self.count} for {self.reason}. {self.advice}"

    @property
    def advice(self) -> str:
        """Return the advice for files with another number of dates."""
        return f"Give {counted(self.count, 'date')}, or change backbone_temporal_* in model_args."
