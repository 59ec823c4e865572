"""The table: every database x driver x way of waiting that the contract must hold for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from dlock_core.dialects import find_dialect
from dlock_core.dialects.base import Capabilities
from tests.servers.odbc import MICROSOFT

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    server: str
    drivername: str
    api: Literal["sync", "async", "alock"] = "sync"
    fast: bool = False
    """Whether `make test` runs the tests that fit this row here; see `tests/selection.py`."""
    in_memory: bool = False
    """The database is in this process."""
    share_sessions: bool = True
    odbc: str | None = None
    """The ODBC driver; by default FreeTDS, if it is there."""

    @property
    def is_server(self) -> bool:
        """Whether a server process holds the locks."""
        return self.server != "sqlite"

    @property
    def is_standin(self) -> bool:
        """Whether a program of the tests plays the server, which has no tables and not every view."""
        return self.server == "oracle-standin" or (
            self.server == "mssql" and not os.environ.get("DLOCK_TEST_MSSQL_URL")
        )

    @property
    def shared(self) -> bool:
        """Whether the database has shared locks."""
        return self._capabilities.shared

    @property
    def fencing(self) -> bool:
        """Whether the database has fencing tokens."""
        return self._capabilities.fencing

    @property
    def _capabilities(self) -> Capabilities:
        return find_dialect(self.drivername.partition("+")[0]).capabilities


ROWS = (
    Row("postgresql-psycopg", "postgresql", "postgresql+psycopg", fast=True),
    Row("postgresql-psycopg2", "postgresql", "postgresql+psycopg2"),
    Row("postgresql-psycopg-async", "postgresql", "postgresql+psycopg", "async"),
    Row("postgresql-asyncpg", "postgresql", "postgresql+asyncpg", "async", fast=True),
    Row("postgresql-psycopg-alock", "postgresql", "postgresql+psycopg", "alock"),
    Row("mysql-pymysql", "mysql", "mysql+pymysql"),
    Row("mysql-mysqlclient", "mysql", "mysql+mysqldb"),
    Row("mysql-aiomysql", "mysql", "mysql+aiomysql", "async"),
    Row("mysql-asyncmy", "mysql", "mysql+asyncmy", "async"),
    Row("mysql-pymysql-alock", "mysql", "mysql+pymysql", "alock"),
    # SQLAlchemy has two names for MariaDB, and the server is what it is under both.
    Row("mariadb-pymysql", "mariadb", "mysql+pymysql", fast=True),
    Row("mariadb-mysqlclient", "mariadb", "mariadb+mysqldb"),
    Row("mariadb-aiomysql", "mariadb", "mariadb+aiomysql", "async", fast=True),
    Row("mariadb-asyncmy", "mariadb", "mysql+asyncmy", "async"),
    Row("mariadb-pymysql-alock", "mariadb", "mariadb+pymysql", "alock", fast=True),
    # A stand-in without DLOCK_TEST_MSSQL_URL: what these rows show then, they show of the drivers.
    Row("mssql-pymssql", "mssql", "mssql+pymssql", fast=True),
    Row("mssql-pyodbc", "mssql", "mssql+pyodbc"),
    Row("mssql-pyodbc-microsoft", "mssql", "mssql+pyodbc", odbc=MICROSOFT),
    Row("mssql-aioodbc", "mssql", "mssql+aioodbc", "async"),
    # Only with DLOCK_TEST_ORACLE_URL.
    Row("oracle-oracledb", "oracle", "oracle+oracledb"),
    Row("oracle-oracledb-async", "oracle", "oracle+oracledb_async", "async"),
    Row("oracle-standin", "oracle-standin", "oracle+oracledb", in_memory=True, fast=True),
    Row("oracle-standin-async", "oracle-standin", "oracle+oracledb_async", "async", in_memory=True),
    # Each owner has a session of its own, on which it also waits.
    Row("postgresql-psycopg-own", "postgresql", "postgresql+psycopg", share_sessions=False, fast=True),
    Row("postgresql-asyncpg-own", "postgresql", "postgresql+asyncpg", "async", share_sessions=False),
    Row("mariadb-pymysql-alock-own", "mariadb", "mysql+pymysql", "alock", share_sessions=False),
    Row("sqlite-file", "sqlite", "sqlite", fast=True),
    Row("sqlite-memory", "sqlite", "sqlite", in_memory=True, fast=True),
    Row("sqlite-aiosqlite", "sqlite", "sqlite+aiosqlite", "async", fast=True),
)
