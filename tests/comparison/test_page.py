"""docs/comparison.md names tests that exist, each of this folder's but those about the page."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "comparison.md"


def test_each_row_names_its_tests_and_each_test_has_its_row() -> None:
    """So that no claim is left without a run, and no run without its claim."""
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    files = (path for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)
    assert named == {
        test for path in files for test in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    rows = re.findall(r"^\| .*", PAGE.read_text(), re.MULTILINE)
    assert all("[^" in row for row in rows if not row.startswith(("| ---", "| | ")))
