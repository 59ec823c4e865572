"""A module like oracledb whose connections lead to a table of locks in this process, for `create_engine(module=…)`."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import types
from collections.abc import Callable
from typing import Any, Self

import oracledb

from .locks import DBMS_LOCK, Client, LockTable, Outcome

__all__ = ["OracleServer", "module_of"]

CODES = {Outcome.AT_ONCE: 0, Outcome.AFTER_WAIT: 0, Outcome.TIMEOUT: 1, Outcome.DEADLOCK: 2}
MODES = dict(enumerate(DBMS_LOCK, 1))
MAXWAIT = 32767
CALL = re.compile(r":answer := SYS\.DBMS_LOCK\.(\w+)(?:\((.*)\))?;", re.DOTALL)
ARGUMENT = re.compile(r"(\w+) => \(?:(\w+)(?: = (1))?\)?")
SHOW = re.compile(r"SYS\.DBMS_APPLICATION_INFO\.SET_CLIENT_INFO\(:label\);")
FORMALS = {
    "REQUEST": {"id", "lockmode", "timeout", "release_on_commit"},
    "CONVERT": {"id", "lockmode", "timeout"},
    "RELEASE": {"id"},
}
QUERIES: dict[str, Callable[[Any], list[tuple[Any, ...]]]] = {
    "SELECT 1 FROM DUAL": lambda _: [(1,)],
    "SELECT SYS_CONTEXT('USERENV', 'DATABASE_ROLE') FROM DUAL": lambda server: [(server.role,)],
    "select sys_context( 'userenv', 'current_schema' ) from dual": lambda _: [("DLOCK",)],
    "SELECT 1.1 FROM DUAL": lambda _: [("1.1",)],
}


class OracleServer:
    """What all sessions share."""

    def __init__(self) -> None:
        self.locks = LockTable(DBMS_LOCK)
        self.role: str | None = "PRIMARY"
        self.granted = True
        self.sessions: list[Session] = []
        self.numbers = itertools.count(1)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.script: list[int | Exception] = []
        """Answers to give before the table is asked again."""

    def open(self, **_: Any) -> Session:
        """Open a session."""
        session = Session(self)
        self.sessions.append(session)
        return session


class Detail:
    """What oracledb tells of an error."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.message = f"ORA-{code:05}: {text}"

    def __str__(self) -> str:
        return self.message


def error(code: int, text: str) -> Exception:
    """Make an error like oracledb's."""
    make: Any = oracledb.DatabaseError
    return make(Detail(code, text))  # type: ignore[no-any-return]


class Variable:
    """An out bind."""

    value: Any = None

    def getvalue(self) -> Any:
        """Return what the block has assigned."""
        return self.value


class Cursor:
    """Runs the few statements that it knows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: list[tuple[Any, ...]] = []
        self.description: Any = None
        self.arraysize = 1
        self.outputtypehandler: Any = None

    def var(self, kind: type, *_: Any, **__: Any) -> Variable:
        """Make an out bind."""
        assert kind in (int, str)
        return Variable()

    def execute(self, sql: str, parameters: Any = None) -> None:
        """Run a block or a query."""
        self._session.check()
        binds = dict(parameters or {})
        assert {name.lower() for name in re.findall(r"(?<!:):(\w+)", sql)} == set(binds), "each bind has a value"
        if sql.lstrip().upper().startswith("SELECT"):
            self.description = [("COLUMN", None)]
            self._rows = list(QUERIES[sql.strip()](self._session.server))
        else:
            self._session.block(sql, binds)
        if self._session.autocommit:
            self._session.commit()

    def fetchone(self) -> Any:
        """Return the next row."""
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        """Do nothing."""

    def setinputsizes(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """A connection, and the session behind it."""

    version = "19.3.0.0.0"
    max_identifier_length = 128
    stmtcachesize = 20
    thin = True
    outputtypehandler: Any = None

    def __init__(self, server: OracleServer) -> None:
        self.server = server
        self.client = Client(next(server.numbers))
        self.dsn = "standin"
        self.autocommit = False
        self.call_timeout = 0
        self.client_info = ""
        self._use = threading.Lock()

    def check(self) -> None:
        """Refuse what comes after the end."""
        if self.client.cut:
            raise error(28, "your session has been killed")

    def cursor(self, *_: Any, **__: Any) -> Cursor:
        """Make a cursor."""
        return Cursor(self)

    def block(self, sql: str, binds: dict[str, Any]) -> None:
        """Run an anonymous block."""
        if "local_transaction_id" in sql:
            binds["trans_id"].value = "1.2.3"
            return
        shown = SHOW.search(sql)
        if shown:
            self.client_info = binds["label"]
            assert len(self.client_info.encode()) <= 64
        call = CALL.search(sql)
        if call is None:
            binds["answer"].value = 0
            return
        if not self.server.granted:
            raise error(6550, "line 1, column 18: PLS-00201: identifier 'SYS.DBMS_LOCK' must be declared")
        assert self._use.acquire(blocking=False), "two statements run on one session at a time"
        try:
            binds["answer"].value = self.call(call[1], call[2] or "", binds)
        finally:
            self._use.release()

    def call(self, function: str, text: str, binds: dict[str, Any]) -> int:
        """Call a function of DBMS_LOCK."""
        if function == "X_MODE":
            return 6
        arguments = {name: binds[bind] == 1 if one else binds[bind] for name, bind, one in ARGUMENT.findall(text)}
        assert set(arguments) == FORMALS[function]
        self.server.calls.append((function, arguments))
        if self.server.script:
            answer = self.server.script.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return self._asked(function, arguments)

    def _asked(self, function: str, arguments: dict[str, Any]) -> int:
        number, locks = arguments["id"], self.server.locks
        if not 0 <= number < 2**30:
            return 5
        if arguments.get("lockmode", 1) not in MODES or not 0 <= arguments.get("timeout", 0) <= MAXWAIT:
            return 3
        held = locks.modes(self.client, number)
        if function == "RELEASE":
            owners = [owner for owner in ("Session", "Transaction") if locks.release(self.client, number, owner)]
            return 0 if owners else 4
        mode = MODES[arguments["lockmode"]]
        seconds = None if arguments["timeout"] == MAXWAIT else arguments["timeout"]
        if bool(held) is (function == "REQUEST"):
            return 4
        if function == "CONVERT":
            return self._code(lambda: locks.convert(self.client, number, mode, seconds))
        owner = "Transaction" if arguments["release_on_commit"] else "Session"
        return self._code(lambda: locks.request(self.client, number, mode, seconds, owner))

    def _code(self, request: Callable[[], Outcome]) -> int:
        outcome = request()
        self.check()
        if outcome is Outcome.CANCELLED:
            self.client.cancelled = False
            raise error(1013, "user requested cancel of current operation")
        return CODES[outcome]

    def cancel(self) -> None:
        """End a wait of another thread."""
        if self.client.waits:
            self.server.locks.cancel(self.client)

    def commit(self) -> None:
        """End the transaction."""
        self.check()
        self.server.locks.end(self.client, "Transaction")

    def rollback(self) -> None:
        """End the transaction."""
        self.commit()

    def ping(self) -> None:
        """Answer."""
        self.check()

    def kill(self) -> None:
        """End the session at the server."""
        self.server.locks.end(self.client)
        if self in self.server.sessions:
            self.server.sessions.remove(self)

    def close(self) -> None:
        """End the session."""
        assert not self.client.waits, "a connection is closed under its own statement"
        self.kill()


class AsyncCursor(Cursor):
    """The same, to be awaited."""

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Any = None) -> None:  # type: ignore[override]
        """Run a block or a query."""
        try:
            await asyncio.to_thread(super().execute, sql, parameters)
        except asyncio.CancelledError:
            self._session.cancel()
            raise

    async def fetchall(self) -> list[tuple[Any, ...]]:  # type: ignore[override]
        """Return all rows."""
        return super().fetchall()


class AsyncSession:
    """An async connection."""

    def __init__(self, session: Session) -> None:
        object.__setattr__(self, "session", session)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.session, name, value)

    def cursor(self, *_: Any, **__: Any) -> AsyncCursor:
        """Make a cursor."""
        return AsyncCursor(self.session)

    async def commit(self) -> None:
        """End the transaction."""
        self.session.commit()

    async def rollback(self) -> None:
        """End the transaction."""
        self.session.rollback()

    async def close(self) -> None:
        """End the session."""
        self.session.kill()

    def terminate(self) -> None:
        """End the session at once."""
        self.session.kill()


def module_of(server: OracleServer) -> Any:
    """Return oracledb with other ways to connect."""
    module = types.ModuleType("oracledb")
    module.__dict__.update(vars(oracledb))

    async def connect_async(**_: Any) -> AsyncSession:
        return AsyncSession(server.open())

    module.__dict__.update(connect=server.open, connect_async=connect_async)
    return module
