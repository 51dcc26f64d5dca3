"""Simulated chips of a globe."""

import pytest

from terramind_plugin.simulation.dataset import simulate


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """Return the folder of a small data set: 12 chips of 64 pixels."""
    return simulate(tmp_path_factory.mktemp("worlds"), chips=12, size=64, seed=5, world="globe").root
