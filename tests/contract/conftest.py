"""One house for each test on each row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import server
from tests.selection import in_rows
from tests.servers.mssql import odbc_driver
from tests.servers.odbc import drivers

from .house import House
from .rows import ROWS, Row
from .witnesses import MySQLWitness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants a house, or a row, on every row that its marks allow."""
    if "row" not in metafunc.fixturenames:
        return
    wanted = metafunc.definition.get_closest_marker("rows")
    rows = [row for row in ROWS if wanted is None or wanted.args[0](row)]
    assert rows, "no row fits"
    metafunc.parametrize("row", in_rows(rows, lambda row: row.fast, lambda row: row.name))


def _require_driver(row: Row) -> None:
    """Skip a row whose driver is not installed, but fail in CI; mysqlclient has to be built."""
    try:
        sa.make_url(f"{row.drivername}://").get_dialect().import_dbapi()
    except ImportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the driver of {row.drivername}: {error}")
        pytest.skip(f"{row.drivername}: {error}")
    if row.drivername.endswith("odbc"):
        require_odbc(row.odbc or odbc_driver())


def require_odbc(driver: str | None) -> None:
    """Skip without an ODBC driver, but fail in CI."""
    if driver not in drivers():
        missing = "no ODBC driver for SQL Server: install unixodbc, tdsodbc and the package mssql-python-odbc"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture
def house(row: Row, tmp_path: Path) -> Iterator[House]:
    """The house of a row."""
    _require_driver(row)
    house = House(row, server(row.server) if row.is_server else None, tmp_path)
    yield house
    house.close()


@pytest.fixture
def mysql(house: House) -> MySQLWitness:
    """The witness of MySQL or MariaDB, which can run statements."""
    assert isinstance(house.witness, MySQLWitness)
    return house.witness


@pytest.fixture
def set_global(house: House, mysql: MySQLWitness) -> Iterator[Callable[[str, Any], None]]:
    """What sets a variable for all new sessions of a MySQL or MariaDB server, until the test ends."""
    assert house.server is not None
    if not house.server.controllable:
        pytest.skip("the server is not ours to set up")
    with ExitStack() as undo:

        def change(name: str, value: Any) -> None:
            statement = sa.text(f"SET GLOBAL {name} = :value")
            undo.callback(mysql.connection.execute, statement, {"value": mysql.scalar(f"SELECT @@GLOBAL.{name}")})
            mysql.connection.execute(statement, {"value": value})

        yield change
