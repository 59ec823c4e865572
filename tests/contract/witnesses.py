"""Witnesses: what the server, not our library, says about its locks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from dlock_core.dialects.base import error_number
from dlock_core.dialects.sqlite import MemoryLocks
from tests.servers import OracleStandIn, Server, wait_until
from tests.standin.locks import Client

__all__ = ["FileWitness", "MemoryWitness", "MySQLWitness", "PostgreSQLWitness", "Witness", "witness_of"]


class Witness(Protocol):
    """Another that can be asked."""

    def holders(self) -> int:
        """Return how many locks are held."""
        ...

    def waiters(self) -> int:
        """Return how many requests are queued at the server."""
        ...

    def sessions(self) -> int:
        """Return how many sessions others have at the server."""
        ...

    def break_lock(self) -> None:
        """Take the held locks away from their holders."""
        ...

    def cancel_waiters(self) -> None:
        """Let the server end the statements that wait."""
        ...

    def end_idle(self) -> None:
        """End all sessions."""
        ...

    def close(self) -> None:
        """Stop looking."""
        ...


class ServerWitness:
    """Looks from a session of its own."""

    drivername: str

    def __init__(self, server: Server) -> None:
        options = {"isolation_level": "AUTOCOMMIT", "poolclass": NullPool, **server.engine_options(self.drivername)}
        self.engine = sa.create_engine(server.url(self.drivername), **options)
        self.connection = self.engine.connect()

    def scalar(self, statement: str, **values: Any) -> Any:
        return self.connection.execute(sa.text(statement), values).scalar_one()

    def all(self, statement: str, **values: Any) -> Any:
        return self.connection.execute(sa.text(statement), values).all()

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


class PostgreSQLWitness(ServerWitness):
    """Looks at pg_locks and pg_stat_activity."""

    drivername = "postgresql+psycopg"

    def _locks(self, granted: bool) -> int:
        found: int = self.scalar(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted = :granted", granted=granted
        )
        return found

    def holders(self) -> int:
        return self._locks(granted=True)

    def waiters(self) -> int:
        return self._locks(granted=False)

    OTHERS = "backend_type = 'client backend' AND pid <> pg_backend_pid()"

    def sessions(self) -> int:
        found: int = self.scalar(f"SELECT count(*) FROM pg_stat_activity WHERE {self.OTHERS}")
        return found

    def break_lock(self) -> None:
        self.scalar("SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        wait_until(lambda: self.holders() == 0, "the holders' sessions to end")

    def cancel_waiters(self) -> None:
        self.scalar("SELECT count(pg_cancel_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

    def end_idle(self) -> None:
        self.scalar(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {self.OTHERS}")
        wait_until(lambda: self.sessions() == 0, "all sessions to end")


class MySQLWitness(ServerWitness):
    """Looks at the performance schema of MySQL, or of MariaDB started with the instrument for metadata locks."""

    drivername = "mysql+pymysql"
    UNKNOWN_THREAD = 1094
    LOCKS = """
        FROM performance_schema.metadata_locks JOIN performance_schema.threads ON thread_id = owner_thread_id
        WHERE object_type = 'USER LEVEL LOCK' AND lock_status = :status
    """
    OTHERS = """
        FROM performance_schema.threads
        WHERE name = 'thread/sql/one_connection' AND processlist_id <> CONNECTION_ID()
    """

    def holders(self) -> int:
        found: int = self.scalar(f"SELECT count(*) {self.LOCKS}", status="GRANTED")
        return found

    def waiters(self) -> int:
        found: int = self.scalar(f"SELECT count(*) {self.LOCKS}", status="PENDING")
        return found

    def sessions(self) -> int:
        found: int = self.scalar(f"SELECT count(*) {self.OTHERS}")
        return found

    def _kill(self, what: str, sessions: str, **values: Any) -> None:
        for (session,) in self.all(f"SELECT DISTINCT processlist_id {sessions}", **values):
            try:
                self.connection.exec_driver_sql(f"KILL {what} {session}")
            except sa.exc.DBAPIError as error:
                if error_number(error) != self.UNKNOWN_THREAD:  # it ended by itself
                    raise

    def break_lock(self) -> None:
        self._kill("CONNECTION", self.LOCKS, status="GRANTED")
        wait_until(lambda: self.holders() == 0, "the holders' sessions to end")

    def cancel_waiters(self) -> None:
        self._kill("QUERY", self.LOCKS, status="PENDING")

    def end_idle(self) -> None:
        self._kill("CONNECTION", self.OTHERS)
        wait_until(lambda: self.sessions() == 0, "all sessions to end")


class MSSQLWitness(ServerWitness):
    """Looks at sys.dm_tran_locks."""

    drivername = "mssql+pymssql"
    LOCKS = "SELECT request_session_id FROM sys.dm_tran_locks WHERE resource_type = 'APPLICATION'"
    HELD = f"{LOCKS} AND request_status = 'GRANT'"
    AWAITED = f"{LOCKS} AND request_status = 'WAIT'"
    OTHERS = "SELECT session_id FROM sys.dm_exec_sessions WHERE is_user_process = 1 AND session_id <> @@SPID"

    def _holding(self) -> list[int]:
        """Return the session of each lock that is held."""
        return [number for (number,) in self.all(self.HELD)]

    def _waiting(self) -> list[int]:
        return [number for (number,) in self.all(self.AWAITED)]

    def _others(self) -> list[int]:
        return [number for (number,) in self.all(self.OTHERS)]

    def holders(self) -> int:
        return len(self._holding())

    def waiters(self) -> int:
        return len(self._waiting())

    def sessions(self) -> int:
        return len(self._others())

    def _kill(self, sessions: list[int]) -> None:
        for number in set(sessions):
            try:
                self.connection.exec_driver_sql(f"KILL {number}")
            except sa.exc.DBAPIError:
                if number in self._others():  # else it ended by itself
                    raise

    def break_lock(self) -> None:
        self._kill(self._holding())
        wait_until(lambda: self.holders() == 0, "the holders' sessions to end")

    def cancel_waiters(self) -> None:
        self._kill(self._waiting())

    def end_idle(self) -> None:
        self._kill(self._others())
        wait_until(lambda: self.sessions() == 0, "all sessions to end")


class BabelfishWitness(MSSQLWitness):
    """Looks where PostgreSQL, which is inside, shows application locks; the views of SQL Server do not."""

    LOCKS = "SELECT pid, granted FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
    OTHERS = "SELECT session_id FROM sys.dm_exec_sessions WHERE session_id <> @@SPID"

    def _holding(self) -> list[int]:
        return [number for number, granted in self.all(self.LOCKS) if granted]

    def _waiting(self) -> list[int]:
        return [number for number, granted in self.all(self.LOCKS) if not granted]


class OracleWitness(ServerWitness):
    """Looks at V$LOCK and V$SESSION, which its user must be allowed to see, and kills sessions."""

    drivername = "oracle+oracledb"
    OTHERS = "SELECT sid, serial# FROM v$session WHERE type = 'USER' AND sid <> SYS_CONTEXT('USERENV', 'SID')"
    HOLDS = f"{OTHERS} AND sid IN (SELECT sid FROM v$lock WHERE type = 'UL' AND lmode > 0)"
    WAITS = f"{OTHERS} AND sid IN (SELECT sid FROM v$lock WHERE type = 'UL' AND request > 0)"

    def holders(self) -> int:
        found: int = self.scalar("SELECT count(*) FROM v$lock WHERE type = 'UL' AND lmode > 0")
        return found

    def waiters(self) -> int:
        found: int = self.scalar("SELECT count(*) FROM v$lock WHERE type = 'UL' AND request > 0")
        return found

    def sessions(self) -> int:
        return len(self.all(self.OTHERS))

    def _kill(self, sessions: str) -> None:
        for sid, serial in self.all(sessions):
            self.connection.exec_driver_sql(f"ALTER SYSTEM KILL SESSION '{sid},{serial}' IMMEDIATE")

    def break_lock(self) -> None:
        self._kill(self.HOLDS)
        wait_until(lambda: self.holders() == 0, "the holders' sessions to end")

    def cancel_waiters(self) -> None:
        self._kill(self.WAITS)

    def end_idle(self) -> None:
        self._kill(self.OTHERS)
        wait_until(lambda: self.sessions() == 0, "all sessions to end")


class OracleStandInWitness:
    """Looks into the table of the stand-in."""

    def __init__(self, server: OracleStandIn) -> None:
        self.server = server.server

    def holders(self) -> int:
        return len(self.server.locks.holders())

    def waiters(self) -> int:
        return len(self.server.locks.queue)

    def sessions(self) -> int:
        return len(self.server.sessions)

    def _kill(self, clients: list[Client]) -> None:
        for session in [session for session in self.server.sessions if session.client in clients]:
            session.kill()

    def break_lock(self) -> None:
        self._kill(self.server.locks.holders())

    def cancel_waiters(self) -> None:
        self._kill([request.client for request in self.server.locks.queue])

    def end_idle(self) -> None:
        self._kill([session.client for session in self.server.sessions])

    def close(self) -> None:
        """Do nothing."""


def _mssql(server: Server) -> MSSQLWitness:
    """Return a witness for SQL Server, or for what shows less than it."""
    witness = MSSQLWitness(server)
    try:
        witness.holders()
    except sa.exc.DBAPIError:
        witness.close()
        return BabelfishWitness(server)
    return witness


class FileWitness:
    """Looks at the kernel's table of file locks."""

    def __init__(self, database: Path) -> None:
        self.folder = database.with_name(f"{database.name}.dlock")

    def _lock_files(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if not path.suffix]  # notes and what was counted are no locks

    def holders(self) -> int:
        files = {path.stat().st_ino for path in self._lock_files()}
        locked = {int(line.split()[-3].rpartition(":")[2]) for line in Path("/proc/locks").read_text().splitlines()}
        return len(files & locked)

    def waiters(self) -> int:
        return 0

    def sessions(self) -> int:
        return 0

    def break_lock(self) -> None:
        for path in self._lock_files():
            path.unlink()

    def cancel_waiters(self) -> None:
        """Do nothing: no caller waits at a server."""

    def end_idle(self) -> None:
        """Do nothing: there is no server."""

    def close(self) -> None:
        """Do nothing: the table needs no closing."""


class MemoryWitness:
    """Looks into the table of locks in memory, the only place where they are."""

    def __init__(self, engine: Callable[[], sa.Engine]) -> None:
        self._engine = engine

    def _table(self) -> MemoryLocks:
        return MemoryLocks.of(self._engine())

    def holders(self) -> int:
        return sum(len(holders) for _, holders in self._table()._holders.values())

    def waiters(self) -> int:
        return 0

    def sessions(self) -> int:
        return 0

    def break_lock(self) -> None:
        self._table()._holders.clear()

    def cancel_waiters(self) -> None:
        """Do nothing: no caller waits at a server."""

    def end_idle(self) -> None:
        """Do nothing: there is no server."""

    def close(self) -> None:
        """Do nothing."""


def witness_of(server: Server) -> Witness:
    """Return the witness of a server."""
    match server.kind:
        case "postgresql":
            return PostgreSQLWitness(server)
        case "mysql" | "mariadb":
            return MySQLWitness(server)
        case "mssql":
            return _mssql(server)
        case "oracle":
            return OracleWitness(server)
        case "oracle-standin":
            assert isinstance(server, OracleStandIn)
            return OracleStandInWitness(server)
        case _:
            raise AssertionError(f"no witness for {server.kind}")
