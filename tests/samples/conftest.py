"""The chips and the data module of the tests of data."""

from tests.data.conftest import make_chips, make_module, write

__all__ = ["make_chips", "make_module", "write"]
