"""Clients: the connections and sessions of SQLAlchemy, sync and async, behind one plain face.

A test is written once, as blocking code; what is async runs in the event loop of the house.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from dlock_core.sadlock import AsyncSadLock, SadLock, create_async_sadlock, create_sadlock
from tests.contract.persons import Loop

__all__ = ["KINDS", "Client", "Handle", "Kind", "Runner"]

Kind = Literal["connection", "session", "scoped"]
KINDS: tuple[Kind, ...] = ("connection", "session", "scoped")
AnyEngine = sa.Engine | AsyncEngine
PATIENCE = 45.0


class Runner:
    """Runs what a client does: here, or in the event loop."""

    def __init__(self, loop: Loop | None) -> None:
        self.loop = loop

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and wait for what is to be awaited."""
        if self.loop is None:
            return function(*args, **kwargs)

        async def inside() -> Any:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return self.loop.run(inside())


class Block:
    """A `with` block around an async or sync context coordinator."""

    def __init__(self, run: Runner, make: Callable[[], Any]) -> None:
        self._run = run
        self._make = make
        self._coordinator: Any = None

    def __enter__(self) -> Any:
        self._coordinator = self._run(self._at_once)
        return self._run(getattr(self._coordinator, "__enter__" if self._run.loop is None else "__aenter__"))

    async def _later(self) -> Any:
        return self._make()

    @property
    def _at_once(self) -> Callable[[], Any]:
        return self._make if self._run.loop is None else self._later

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        leave = getattr(self._coordinator, "__exit__" if self._run.loop is None else "__aexit__")
        return self._run(leave, kind, error, traceback)


class Handle:
    """A lock of either kind."""

    def __init__(self, run: Runner, lock: SadLock[Any] | AsyncSadLock[Any]) -> None:
        self._run = run
        self.lock = lock

    @property
    def locked(self) -> bool:
        return self.lock.locked

    @property
    def actual_key(self) -> int | str:
        return self.lock.actual_key

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        granted: bool = self._run(self.lock.acquire, block, timeout)
        return granted

    def release(self) -> None:
        self._run(self.lock.release)

    def close(self) -> None:
        self._run(self.lock.close if isinstance(self.lock, SadLock) else self.lock.aclose)

    def __enter__(self) -> Self:
        self._run(self.lock.__enter__ if isinstance(self.lock, SadLock) else self.lock.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leave = self.lock.__exit__ if isinstance(self.lock, SadLock) else self.lock.__aexit__
        self._run(leave, kind, error, traceback)


class Client:
    """One connection or session, and the thread that works with it."""

    def __init__(self, run: Runner, target: Any) -> None:
        self.run = run
        self.target = target
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, kind: Kind, engine: AnyEngine, run: Runner) -> Self:
        """Open a client of a kind."""
        if kind == "connection":
            return cls(run, run(engine.connect))
        if isinstance(engine, AsyncEngine):
            maker = async_sessionmaker(engine, expire_on_commit=False)
            return cls(run, AsyncSession(engine) if kind == "session" else async_scoped_session(maker, lambda: 0))
        return cls(run, Session(engine) if kind == "session" else scoped_session(sessionmaker(engine), lambda: 0))

    def lock(self, key: Any, contextual_timeout: float | None = None, **options: Any) -> Handle:
        """Make a lock."""
        create: Any = create_sadlock if self.run.loop is None else create_async_sadlock
        return Handle(self.run, create(self.target, key, contextual_timeout, **options))

    def execute(self, statement: str) -> None:
        """Run a statement."""
        self.run(self.target.execute, sa.text(statement))

    def scalar(self, statement: str) -> Any:
        """Run a query for one value."""
        return self.run(self.target.scalar, sa.text(statement))

    def commit(self) -> None:
        self.run(self.target.commit)

    def rollback(self) -> None:
        self.run(self.target.rollback)

    def close(self) -> None:
        """Give everything back."""
        self.run(self.target.remove if hasattr(self.target, "remove") else self.target.close)

    def begin(self) -> Block:
        return Block(self.run, self.target.begin)

    def begin_nested(self) -> Block:
        return Block(self.run, self.target.begin_nested)

    @property
    def in_transaction(self) -> bool:
        target = self.target() if isinstance(self.target, scoped_session | async_scoped_session) else self.target
        found: bool = target.in_transaction()
        return found

    @property
    def connection(self) -> sa.Connection:
        """The sync connection under an open connection client."""
        found: sa.Connection = getattr(self.target, "sync_connection", self.target)
        return found

    def begin_call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Let a thread of its own call, and return at once."""
        future: Future[Any] = Future()
        self._thread = threading.Thread(target=_fulfil, args=(future, function, args), daemon=True)
        self._thread.start()
        return future

    def leave(self) -> None:
        """Close all, when the last call has returned."""
        if self._thread is not None:
            self._thread.join(PATIENCE)
        self.close()


def _fulfil(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        future.set_result(function(*args))
    except BaseException as error:
        future.set_exception(error)
