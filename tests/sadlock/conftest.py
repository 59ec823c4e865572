"""One scene for each test on each row of the contract's table, with each kind of client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import server
from tests.contract.house import House
from tests.contract.rows import ROWS, Row

from .clients import KINDS, Kind
from .scene import Scene

WITH_TABLES = ("postgresql", "mysql", "mariadb", "sqlite")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants a scene on all rows and kinds that its marks allow."""
    if "scene" not in metafunc.fixturenames:
        return
    # Of SQL Server and Oracle the stand-ins have no tables: see tests/statements and test_mssql.py of the contract.
    rows = [row for row in ROWS if row.api != "alock" and row.share_sessions and row.server in WITH_TABLES]
    for wanted in metafunc.definition.iter_markers("rows"):
        rows = [row for row in rows if wanted.args[0](row)]
    marked = metafunc.definition.get_closest_marker("kinds")
    kinds = KINDS if marked is None else marked.args
    assert rows, "no row fits"
    cases = [(row, kind) for row in rows for kind in kinds]
    metafunc.parametrize(("row", "kind"), cases, ids=[f"{row.name}-{kind}" for row, kind in cases])


@pytest.fixture
def scene(row: Row, kind: Kind, tmp_path: Path) -> Iterator[Scene]:
    """The scene of a row and a kind of client."""
    house = House(row, server(row.server) if row.is_server else None, tmp_path)
    made = Scene(house, kind)
    try:
        yield made
        made.close()
    finally:
        made.end()
        house.close()
