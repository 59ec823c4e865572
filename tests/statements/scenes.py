"""SQL Server and Oracle without a server: SQLAlchemy's own dialects over the stand-ins for their drivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from dlock_core.dialects import find_dialect
from dlock_core.sessions.pool import open_session
from dlock_core.sessions.session import SqlSession
from tests.standin import odbc, oracle, tsql
from tests.standin.locks import LockTable
from tests.standin.tsql import SqlError

__all__ = ["MSSQLScene", "OracleScene", "Scene"]


class Scene:
    """A server in this process."""

    url: str
    server: Any
    failure: Callable[[int], Exception]
    """An error of the server with a number."""

    def __init__(self) -> None:
        self.locks: LockTable = self.server.locks

    def engine(self, **options: Any) -> sa.Engine:
        """Make an engine to it."""
        return sa.create_engine(self.url, module=self.module(), **options)

    def module(self) -> Any:
        """Return the driver."""
        raise NotImplementedError

    def session(self) -> SqlSession:
        """Open a session for locks."""
        engine = self.engine()
        locks: Any = find_dialect(engine.dialect.name)
        return open_session(engine, engine.pool, locks, None, label="dlock test", allow_unsafe=False)

    @property
    def held(self) -> int:
        """How many locks are held."""
        return len(self.locks.holders())

    @property
    def crashes(self) -> list[str]:
        """What would have crashed a driver."""
        return []


class MSSQLScene(Scene):
    """SQL Server."""

    url = "mssql+pyodbc://u:p@standin/dlock?driver=standin"
    failure = staticmethod(lambda number: SqlError(number, "failed"))

    server: tsql.Server

    def __init__(self) -> None:
        self.server = tsql.Server()
        super().__init__()

    def module(self) -> Any:
        return odbc.module_of(self.server)

    @property
    def crashes(self) -> list[str]:
        return self.server.crashes


class OracleScene(Scene):
    """Oracle."""

    url = "oracle+oracledb://u:p@standin?service_name=x"
    failure = staticmethod(lambda number: oracle.error(number, "failed"))

    def __init__(self) -> None:
        self.server = oracle.OracleServer()
        super().__init__()

    def module(self) -> Any:
        return oracle.module_of(self.server)
