"""Simulated chips whose files a test may change, and the check of a configuration on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.simulation.dataset import SimulatedDataset, simulate
from tests.runs.running import change, segmentation_config


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    """Return twelve chips of 64 pixels."""
    return simulate(tmp_path_factory.mktemp("sound"), size=64, chips=12)


@pytest.fixture
def chips(sound: SimulatedDataset, tmp_path: Path) -> SimulatedDataset:
    """Return a copy of them that may be spoilt."""
    shutil.copytree(sound.root, tmp_path / "chips")
    return SimulatedDataset(tmp_path / "chips", sound.chip_ids, sound.splits)


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., list[Finding]]:
    """Return a function that gives what the check of a changed configuration finds, 'ok' left out."""
    from terramind_plugin.check.run import check

    def run(dataset: SimulatedDataset, changes: dict[str, Any] | None = None) -> list[Finding]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(change(segmentation_config(dataset), changes or {})))
        return [finding for finding in check(path, []) if finding.verdict != "ok"]

    return run
