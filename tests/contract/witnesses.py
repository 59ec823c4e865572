"""Witnesses: what the server, not our library, says about who holds what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from dlock_core.dialects.base import error_number
from dlock_core.dialects.sqlite_memory import MemoryLocks
from tests.servers import Server, wait_until

__all__ = ["FileWitness", "MemoryWitness", "MySQLWitness", "PostgreSQLWitness", "Witness", "witness_of"]


class Witness(Protocol):
    """Somebody who can be asked."""

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
        self.engine = sa.create_engine(server.url(self.drivername), isolation_level="AUTOCOMMIT", poolclass=NullPool)
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


class FileWitness:
    """Looks at the kernel's table of file locks."""

    def __init__(self, database: Path) -> None:
        self.folder = database.with_name(f"{database.name}.dlock")

    def holders(self) -> int:
        files = {path.stat().st_ino for path in self.folder.glob("*")}
        locked = {int(line.split()[-3].rpartition(":")[2]) for line in Path("/proc/locks").read_text().splitlines()}
        return len(files & locked)

    def waiters(self) -> int:
        return 0

    def sessions(self) -> int:
        return 0

    def break_lock(self) -> None:
        for path in self.folder.glob("*"):
            if path.suffix != ".token":  # what was counted is no lock
                path.unlink()

    def cancel_waiters(self) -> None:
        """Do nothing: nobody waits at a server."""

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
        """Do nothing: nobody waits at a server."""

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
        case _:
            raise AssertionError(f"no witness for {server.kind}")
