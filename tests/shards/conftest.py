"""A small made-up TerraMesh."""

import pytest

from tests.shards.packing import pack


@pytest.fixture(scope="session")
def mesh(tmp_path_factory):
    """Return the root of a data set of three shards, twelve samples."""
    root = tmp_path_factory.mktemp("mesh")
    pack(root)
    return root
