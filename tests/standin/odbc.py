"""A module like pyodbc whose connections lead to a server in this process, for `create_engine(module=…)`."""

from __future__ import annotations

import itertools
import time
import types
from typing import Any

from .locks import Client
from .tsql import Batch, Login, Server, SqlError

__all__ = ["Connection", "module_of"]

CANCEL = 0.1
"""Seconds that a cancel takes."""


class Error(Exception):
    """What pyodbc raises: SQLSTATE and text."""


class DatabaseError(Error):
    """An error of the server."""


class ProgrammingError(DatabaseError):
    """An error of the statement."""


class Cursor:
    """Runs batches."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.description: Any = None
        self._results: list[list[tuple[Any, ...]]] = []

    def execute(self, sql: str, *parameters: Any) -> Cursor:
        """Run a batch; as in ODBC, its parameters go by their place."""
        values = parameters[0] if parameters and isinstance(parameters[0], list | tuple) else parameters
        assert sql.count("?") == len(values)
        for number in range(len(values)):
            sql = sql.replace("?", f"@P{number + 1}", 1)
        login = self.connection.login
        if login.client.cut:
            raise DatabaseError("08S01", "[08S01] Communication link failure (0) (SQLExecDirectW)")
        login.server.statements.append(sql)
        try:
            variables = {f"@P{number + 1}": value for number, value in enumerate(values)}
            self._results = list(Batch(login, sql, variables).run())
        except SqlError as error:
            text = f"[42000] [Microsoft][ODBC Driver][SQL Server]{error} ({error.number}) (SQLExecDirectW)"
            raise ProgrammingError("42000", text) from error
        assert len(self._results) <= 1, "pyodbc shows the first result only"
        self.description = [("", int)] if self._results else None
        return self

    def fetchone(self) -> Any:
        """Return the next row."""
        if self.description is None:
            raise ProgrammingError("HY000", "No results.  Previous SQL was not a query.")
        return self._results[0].pop(0) if self._results[0] else None

    def fetchall(self) -> list[Any]:
        """Return the other rows."""
        rows: list[Any] = []
        while (row := self.fetchone()) is not None:
            rows.append(row)
        return rows

    def close(self) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """End a wait of another thread; as in a driver, some work is left after the wait has ended."""
        login = self.connection.login
        if login.client.waits:
            self.connection.cancels += 1
            login.server.locks.cancel(login.client)
            time.sleep(CANCEL)
            self.connection.cancels -= 1


class Connection:
    """A connection, in a transaction as soon as it reads a table."""

    def __init__(self, server: Server, number: int) -> None:
        self.login = Login(server, Client(number), self.kill)
        server.logins[number] = self.login
        self.timeout = 0
        self.cancels = 0
        self._autocommit = False
        self.autocommit = False

    @property
    def autocommit(self) -> bool:
        """Whether transactions begin only by word."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._autocommit = value
        self.login.options["implicit_transactions"] = "off" if value else "on"

    def cursor(self) -> Cursor:
        """Make a cursor."""
        return Cursor(self)

    def commit(self) -> None:
        """End the transaction."""
        self.login.end_transaction()

    rollback = commit

    def add_output_converter(self, *_: Any) -> None:
        """Do nothing: there are no types to convert."""

    def getinfo(self, _: int) -> str:
        """Return the version."""
        return "16.00.1000"

    def kill(self) -> None:
        """End the session at the server."""
        self.login.server.locks.end(self.login.client)
        self.login.server.logins.pop(self.login.client.number, None)

    def close(self) -> None:
        """End the session."""
        if self.login.client.waits or self.cancels:
            self.login.server.crashes.append("a connection was closed under its own statement, or beside a cancel")
        self.kill()


def module_of(server: Server) -> Any:
    """Return what `create_engine` takes for pyodbc."""
    module = types.ModuleType("pyodbc")
    numbers = itertools.count(51)
    module.__dict__.update(
        apilevel="2.0",
        threadsafety=1,
        paramstyle="qmark",
        version="5.5.0",
        pooling=False,
        connect=lambda *_, **__: Connection(server, next(numbers)),
        Cursor=Cursor,
        Error=Error,
        DatabaseError=DatabaseError,
        ProgrammingError=ProgrammingError,
        OperationalError=DatabaseError,
        InterfaceError=DatabaseError,
        InternalError=DatabaseError,
        IntegrityError=DatabaseError,
        DataError=DatabaseError,
        NotSupportedError=DatabaseError,
        Binary=bytes,
        SQL_DBMS_VER=18,
        SQL_DRIVER_NAME=6,
    )
    return module
