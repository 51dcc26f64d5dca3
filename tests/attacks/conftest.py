"""Inputs of all commands that write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.writing import Inputs, can_mount, make_few_inputs, make_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a folder on which small disks can be mounted."""
    folder = tmp_path / "disk"
    if not can_mount(folder):
        pytest.skip("this process may not mount a file system")
    return folder


@pytest.fixture(scope="session")
def few_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Return what commands read that need no model."""
    return make_few_inputs(tmp_path_factory.mktemp("few_inputs"))
