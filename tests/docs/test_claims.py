"""Each claim of the documentation names what shows it, and that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "claims.md").read_text().splitlines()
    if line.startswith("|") and not re.match(r"\|[ -]+\|", line)
]
CLAIMS = [row for row in ROWS if row[0] != "claim"]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
BENCHMARK = re.compile(r"\[benchmarks?\]\(benchmarks\.md#([\w-]+)\)")


def names(path: str) -> set[str]:
    """Return the tests in a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", CLAIMS, ids=[row[0][:60] for row in CLAIMS])
def test_each_claim_is_shown_by_something_that_is_there(row: list[str]) -> None:
    """A test by its name, a measure of the benchmarks, or a manual of the server's maker."""
    _, shown = row
    tests = TEST.findall(shown)
    for path, name in tests:
        assert (ROOT / path).is_file(), path
        assert not name or name in names(path), f"{path}::{name}"
    for heading in BENCHMARK.findall(shown):
        titles = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "benchmarks.md").read_text(), flags=re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert tests or BENCHMARK.findall(shown) or "](https://" in shown or "by hand" in shown


def test_there_are_claims() -> None:
    """The pattern still finds them."""
    assert len(CLAIMS) > 50
