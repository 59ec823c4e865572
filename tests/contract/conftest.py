"""One house for each test on each row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import server

from .house import House
from .rows import ROWS, Row


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants a house, or a row, on every row that its marks allow."""
    if "row" not in metafunc.fixturenames:
        return
    wanted = metafunc.definition.get_closest_marker("rows")
    rows = [row for row in ROWS if wanted is None or wanted.args[0](row)]
    assert rows, "no row fits"
    metafunc.parametrize("row", rows, ids=[row.name for row in rows])


@pytest.fixture
def house(row: Row, tmp_path: Path) -> Iterator[House]:
    """The house of a row."""
    house = House(row, server(row.server) if row.is_server else None, tmp_path)
    yield house
    house.close()
