"""How large the house is: `make house` counts what it says that it counts."""

from __future__ import annotations

import pytest

house = pytest.importorskip("benchmarks.house", reason="what is installed has no benchmarks")

SOURCE = '''"""A docstring,
of two lines."""

# A comment.
x = (
    1,  # and one beside code
)


def f() -> str:
    """Another."""
    return """text
that is code"""
'''


def test_only_code_counts_as_lines_of_code() -> None:
    """No docstring, comment or blank line; a statement over three lines counts three."""
    assert house.lines_of_code(SOURCE) == 6


def test_the_layers_are_as_few_as_agreed() -> None:
    """The other figures are printed, and judged by people."""
    found = {measure.what: measure for measure in house.measures()}
    assert found["layers of imports"].now <= found["layers of imports"].aim
    assert found["entries at the top of dlock_core"].now <= found["entries at the top of dlock_core"].aim
