"""One scene for each test on each row of the contract's table, with each kind of client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import server
from tests.contract.house import House
from tests.contract.rows import ROWS, Row
from tests.selection import in_rows

from .clients import KINDS, Kind
from .scene import Scene

WITH_TABLES = ("postgresql", "mysql", "mariadb", "mssql", "sqlite")
# A driver is met under a connection. A session adds transactions, which servers differ in; a scoped one is a proxy.
TRAITS: dict[Kind, Callable[[Row], object]] = {
    "connection": lambda row: row.name,
    "session": lambda row: (row.server, row.api),
    "scoped": lambda row: row.api,
}


def rows_for(kind: Kind, rows: list[Row]) -> list[Row]:
    """Return the rows where a kind of client can differ from the same on other rows, fast ones if possible."""
    first: dict[object, Row] = {}
    for row in sorted(rows, key=lambda row: not row.fast):
        first.setdefault(TRAITS[kind](row), row)
    return [row for row in rows if row in first.values()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants a scene on the rows and kinds that its marks allow."""
    if "scene" not in metafunc.fixturenames:
        return
    # Of SQL Server and Oracle the stand-ins have no tables: see tests/statements and test_mssql.py of the contract.
    rows = [row for row in ROWS if row.server in WITH_TABLES and not row.is_standin]
    rows = [row for row in rows if row.api != "alock" and row.share_sessions]
    for wanted in metafunc.definition.iter_markers("rows"):
        rows = [row for row in rows if wanted.args[0](row)]
    marked = metafunc.definition.get_closest_marker("kinds")
    kinds = KINDS if marked is None else marked.args
    assert rows, "no row fits"
    cases = [(row, kind) for kind in kinds for row in rows_for(kind, rows)]
    metafunc.parametrize(
        ("row", "kind"), in_rows(cases, lambda case: case[0].fast, lambda case: f"{case[0].name}-{case[1]}")
    )


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
