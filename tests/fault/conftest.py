"""The contract's rows and houses serve here too."""

from tests.contract.conftest import house, pytest_generate_tests

__all__ = ["house", "pytest_generate_tests"]
