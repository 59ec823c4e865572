"""What is said of a URL that cannot be used, and which drivers locks are for."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dlock_core import LockProvider, UnsafeEnvironmentError, UnsupportedError
from dlock_core.dialects import mssql, mysql, postgresql
from dlock_core.dialects.base import check_driver
from dlock_core.sessions.engines import PACKAGES


@pytest.mark.parametrize(
    ("url", "module", "says"),
    [
        ("sqlite+aiosqlite:///app.db", "aiosqlite", "pip install 'dlock-suite[sqlite-async]'"),
        ("postgresql+psycopg://host/db", "psycopg", "pip install 'dlock-suite[postgresql]'"),
        ("postgresql+psycopg2://host/db", "psycopg2", "pip install 'psycopg2-binary'"),
        ("postgresql+asyncpg://host/db", "asyncpg", "pip install 'asyncpg'"),
        ("mysql+pymysql://host/db", "pymysql", "pip install 'dlock-suite[mysql]'"),
        ("mariadb+mysqldb://host/db", "MySQLdb", "pip install 'mysqlclient'"),
        ("mysql+aiomysql://host/db", "aiomysql", "pip install 'aiomysql'"),
        ("mssql+pymssql://host/db", "pymssql", "pip install 'pymssql'"),
        ("mssql+pyodbc://host/db", "pyodbc", "pip install 'dlock-suite[mssql]'"),
        ("oracle+oracledb://host/db", "oracledb", "pip install 'dlock-suite[oracle]'"),
        ("postgresql+pg8000://host/db", "pg8000", "postgresql+psycopg, postgresql+psycopg2, postgresql+asyncpg"),
        ("postgres://host/db", "none", "postgresql+psycopg://"),
        ("foo://host/db", "none", "Correct the URL"),
    ],
)
def test_a_missing_driver_is_named_with_the_package_that_has_it(
    url: str, module: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra of a database has only one of its drivers."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError) as caught:
        LockProvider(url)
    assert says in str(caught.value)
    assert "[foo]" not in str(caught.value)
    assert "[postgres]" not in str(caught.value)


@pytest.mark.parametrize("module", [postgresql, mysql, mssql])
def test_the_drivers_that_are_accepted_are_those_that_are_named(module: Any) -> None:
    """In the hint for a missing one."""
    assert set(module.DRIVERS) == set(PACKAGES[module.__name__.rpartition(".")[2]])


def test_a_driver_that_is_not_known_is_refused() -> None:
    """Without the number of its session at the server a transaction pooler would go unnoticed: two holders."""
    session: Any = type("Session", (), {"sqla": type("Dialect", (), {"driver": "pg8000"})})
    with pytest.raises(UnsafeEnvironmentError, match=r"pg8000.*psycopg or psycopg2 or asyncpg.*allow_unsafe"):
        check_driver(session, postgresql.DRIVERS)
