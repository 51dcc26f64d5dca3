"""Suppression of messages in which libraries report on themselves."""

from __future__ import annotations

import logging
import re
import sys
import warnings

WARNINGS = (
    r".*configure_optimizers. will be overridden by",  # by the configuration's optimizer, which is meant
    r".*isinstance\(treespec, LeafSpec\). is deprecated",
    r"The ``compute`` method of metric \w+ was called before the ``update`` method",  # in Lightning's first validation
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"The '\w+' does not have many workers",
    r"LightningCLI's args parameter",
    r"Checkpoint directory .* exists and is not empty",
    r"Use `@` matmul instead of `\*` mul operator",
    r"Error fetching version info",  # albumentations without a network
)
"""Patterns of warnings that do not concern a user's data or configuration."""
LINES = re.compile(r"💡 Tip|TPU available|HPU available|`Trainer\(limit_\w+=1\.0\)` was configured")
"""Pattern of Lightning's log lines that do not concern a run."""


class _WithoutTips(logging.Filter):
    """Filter that drops the log lines of `LINES`."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not LINES.match(record.getMessage())


_FILTER = _WithoutTips()


def silence_libraries() -> None:
    """Suppress such messages in this process, unless Python was started with warnings turned on."""
    if not sys.warnoptions:
        for text in WARNINGS:
            warnings.filterwarnings("ignore", text)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_FILTER)
