"""Whole runs on simulated chips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from terramind_plugin.simulation.dataset import SimulatedDataset, simulate
from tests.conftest import one_thread
from tests.runs.real_chips import cut_spain
from tests.runs.running import Fitted, Runner, fit_once, segmentation_config


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    """Return six chips of 64 pixels: four for training, one for validation, one for test."""
    return simulate(tmp_path_factory.mktemp("scenes"), size=64, chips=6)


@pytest.fixture(scope="session")
def segmentation(scenes: SimulatedDataset) -> dict[str, Any]:
    """Return the configuration of a tiny model that segments the chips."""
    return segmentation_config(scenes)


@pytest.fixture
def runner(segmentation: dict[str, Any], tmp_path: Path) -> Runner:
    """Return a runner in a folder of its own."""
    return Runner(segmentation, tmp_path)


@pytest.fixture(scope="session")
def fitted(segmentation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Return one epoch of training, started from the root of the repository."""
    return fit_once(segmentation, tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="session")
def spain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return changes to tiles of the real chip that has both sensors."""
    return cut_spain(tmp_path_factory.mktemp("spain"))
