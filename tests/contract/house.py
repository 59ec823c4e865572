"""A house: one row's database, its providers, its persons and its witness, for one test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core import AsyncLockProvider, LockProvider
from tests.servers import Server, wait_until
from tests.servers.mssql import with_driver

from .persons import Loop, Person, TaskPerson, ThreadPerson
from .rows import Row
from .witnesses import FileWitness, MemoryWitness, Witness, witness_of

__all__ = ["AnyProvider", "House", "fail_beside", "until"]

AnyProvider = LockProvider | AsyncLockProvider


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until a condition holds."""
    wait_until(lambda: bool(condition()), what)


async def fail_beside(*work: Coroutine[Any, Any, None]) -> None:
    """Do work in tasks of a group with one that fails; all are cancelled, and none adds an error of its own."""

    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            for one in (*work, fail()):
                tasks.create_task(one)
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


class House:
    """Everything that one contract test needs."""

    def __init__(self, row: Row, server: Server | None, folder: Path) -> None:
        self.row = row
        self.server = server
        self.loop = Loop()
        self.url = self._url(server, folder)
        self.providers: list[AnyProvider] = []
        self.persons: list[Person] = []
        self.engines: list[sa.Engine] = []
        self.witness = self._witness(server, folder)
        self.sessions_before = self.witness.sessions()
        self.provider = self.new_provider()

    def _url(self, server: Server | None, folder: Path) -> str:
        if server is not None:
            url = server.url(self.row.drivername)
            return with_driver(url, self.row.odbc) if self.row.odbc else url
        if self.row.in_memory:
            return f"{self.row.drivername}:///file:{folder.name}?mode=memory&cache=shared&uri=true"
        return f"{self.row.drivername}:///{folder / 'app.db'}"

    def _witness(self, server: Server | None, folder: Path) -> Witness:
        if server is not None:
            return witness_of(server)
        return MemoryWitness(lambda: self.engines[0]) if self.row.in_memory else FileWitness(folder / "app.db")

    def new_provider(self, *, engine_options: dict[str, Any] | None = None, **options: Any) -> AnyProvider:
        """Make a provider; a second one knows nothing of the first, like one in another process."""
        options.setdefault("share_sessions", self.row.share_sessions)
        provider: AnyProvider
        if self.row.in_memory and not self.row.is_server:
            engine_options = {"poolclass": sa.pool.QueuePool, **(engine_options or {})}
        if self.server is not None:
            engine_options = {**self.server.engine_options(self.row.drivername), **(engine_options or {})}
        if self.row.api == "async":
            async_engine = create_async_engine(self.url, **(engine_options or {}))
            self.engines.append(async_engine.sync_engine)
            provider = AsyncLockProvider(async_engine, **options)
        else:
            engine = sa.create_engine(self.url, **(engine_options or {}))
            self.engines.append(engine)
            provider = LockProvider(engine, **options)
        self.providers.append(provider)
        return provider

    def maker(self, provider: AnyProvider | None = None) -> Any:
        """Return what makes locks for this row."""
        provider = provider or self.provider
        if isinstance(provider, LockProvider) and self.row.api == "alock":
            return provider.alock
        return provider.lock

    def person(self, provider: AnyProvider | None = None) -> Person:
        """Let another in that uses this provider."""
        maker = self.maker(provider)
        person = ThreadPerson(maker) if self.row.api == "sync" else TaskPerson(maker, self.loop)
        self.persons.append(person)
        return person

    def stranger(self) -> Person:
        """Let another in that uses a provider of its own."""
        return self.person(self.new_provider())

    def close_provider(self, provider: AnyProvider) -> None:
        """Close a provider in its own way."""
        if isinstance(provider, AsyncLockProvider):
            self.loop.run(provider.close())
        else:
            provider.close()

    def _dispose(self, engine: sa.Engine) -> None:
        if engine.dialect.is_async:
            self.loop.run(sa.util.greenlet_spawn(engine.dispose))
        else:
            engine.dispose()

    def close(self) -> None:
        """Close the house, and ask the witness what is left in it."""
        try:
            for person in self.persons:
                person.leave()
            until(lambda: self.witness.holders() == 0, "the last lock to be free")
            until(lambda: self.witness.waiters() == 0, "the last waiter to leave")
            out = [engine.pool.checkedout() for engine in self.engines if hasattr(engine.pool, "checkedout")]
            assert not any(out), "a connection is out of the application's pool"
            for provider in self.providers:
                self.close_provider(provider)
            for engine in self.engines:
                self._dispose(engine)
            self.loop.close()
            until(lambda: self.witness.sessions() <= self.sessions_before, "the last session to end")
        finally:
            self.witness.end_idle()  # a failure here must not reach into the next test
            self.witness.close()
