"""A scene: one row's database with a table for the user's work, and clients of one kind."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core.sadlock import own
from tests.contract.house import House, until

from .clients import AnyEngine, Client, Kind, Runner

__all__ = ["Scene", "SqlError", "open_engines"]

# What a user sees of a wrong statement, whichever the driver.
SqlError = (sa.exc.ProgrammingError, sa.exc.OperationalError)
MISTAKE = "INSERT INTO no_such_table VALUES (1)"


def open_engines() -> list[Any]:
    """Return the sessions that are open for locks of Sessions, by engine."""
    return list(own.engines.by_engine.values())


class Scene:
    """Everything that one test needs."""

    def __init__(self, house: House, kind: Kind) -> None:
        self.house = house
        self.row = house.row
        self.witness: Any = house.witness
        self.kind = kind
        self.run = Runner(house.loop if self.row.api == "async" else None)
        self.engines: list[AnyEngine] = []
        self.clients: list[Client] = []
        self.engine = self.new_engine()
        self._work("DROP TABLE IF EXISTS work", "CREATE TABLE work (i integer)")

    def _work(self, *statements: str) -> None:
        client = Client.of("connection", self.engine, self.run)
        for statement in statements:
            client.execute(statement)
        client.commit()
        client.close()

    def new_engine(self, **options: Any) -> AnyEngine:
        """Make an engine with a pool of its own."""
        if self.row.in_memory:
            options = {"poolclass": sa.pool.QueuePool, **options}
        if self.house.server is not None:
            options = {**self.house.server.engine_options(self.row.drivername), **options}
        make: Any = create_async_engine if self.row.api == "async" else sa.create_engine
        engine: AnyEngine = make(self.house.url, **options)
        self.engines.append(engine)
        return engine

    def client(self, engine: AnyEngine | None = None, kind: Kind | None = None) -> Client:
        """Let a client in."""
        client = Client.of(kind or self.kind, engine or self.engine, self.run)
        self.clients.append(client)
        return client

    @property
    def holders(self) -> int:
        """How many locks the server says are held."""
        found: int = self.witness.holders()
        return found

    @property
    def rows(self) -> list[int]:
        """What the work table holds, committed."""
        client = Client.of("connection", self.engine, self.run)
        found = self.run(client.target.execute, sa.text("SELECT i FROM work ORDER BY i")).scalars().all()
        client.close()
        return list(found)

    def has_waiter(self) -> bool:
        """Tell whether a lock is waited for, at the server or in the queue of this process."""
        return bool(self.witness.waiters()) or any(each.coordinator.entries._awaited for each in open_engines())

    def until_waiting(self) -> None:
        """Wait until a lock is waited for."""
        until(self.has_waiter, "a waiter")

    def insert(self, client: Client, number: int) -> None:
        """Let a client do some work."""
        client.execute(f"INSERT INTO work VALUES ({number})")

    def kill(self, client: Client) -> None:
        """Let the server end the session that a client works on."""
        postgresql = self.row.server == "postgresql"
        asks = {"postgresql": "SELECT pg_backend_pid()", "mssql": "SELECT @@SPID"}
        number = client.scalar(asks.get(self.row.server, "SELECT CONNECTION_ID()"))
        sessions = self.witness.sessions()
        if postgresql:
            self.witness.scalar(f"SELECT pg_terminate_backend({number})")
        else:
            self.witness.connection.exec_driver_sql(f"KILL {number}")
        until(lambda: self.witness.sessions() < sessions, "the session to end")

    def pool(self, engine: AnyEngine | None = None) -> Any:
        """Return the pool of an engine."""
        return (engine or self.engine).pool

    def close(self) -> None:
        """Close all clients, and look what the pools and the server hold."""
        for client in self.clients:
            client.leave()
        assert self.holders == 0, "a connection in a pool, or one beside it, holds a lock"
        assert not open_engines(), "lock sessions are open though no lock is held or waited for"
        until(lambda: self.witness.waiters() == 0, "the last waiter to leave")
        for engine in self.engines:
            out = getattr(self.pool(engine), "checkedout", lambda: 0)()
            assert out == 0, "a connection is out of its pool"
        self._work("DROP TABLE work")

    def end(self) -> None:
        """Close the engines."""
        for engine in self.engines:
            self.run(engine.dispose)
