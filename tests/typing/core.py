"""Types of dlock_core, as mypy and pyright infer them for users."""

from __future__ import annotations

from typing import Any, assert_type

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from dlock_core import (
    AsyncLock,
    AsyncLockProvider,
    Finding,
    Lock,
    LockAcquired,
    LockEvent,
    LockInfo,
    LockLost,
    LockProvider,
    LockReleased,
    LockTimeoutError,
    LockWaiter,
    create_async_sadlock,
    create_sadlock,
    run_locked,
)
from dlock_core.contrib.testing import MemoryDatabase, hold
from dlock_core.sadlock import AsyncSadLock, SadLock

locks = LockProvider(create_engine("sqlite://"), on_lost=lambda lock: print(lock.key))
LockProvider("sqlite://", lease="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
locks.lock("key", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
locks.lock("key", tiemout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_lock_is_itself_inside_its_with() -> None:
    """`as` gives the lock, with its token."""
    with locks.lock(("orders", 42), timeout=5, fencing=True) as lock:
        assert_type(lock, Lock)
        assert_type(lock.fencing_token, int)
    assert_type(lock.acquire(timeout=None), bool)
    assert_type(lock.key, str | bytes | int | tuple[str | bytes | int, ...])
    assert_type(lock.actual_key, int | str)


async def an_async_lock_is_itself_too(alocks: AsyncLockProvider) -> None:
    """From both providers, of which one asks in coroutines."""
    async with locks.alock("key") as lock, alocks.lock("key") as other:
        assert_type(lock, AsyncLock)
        assert_type(other, AsyncLock)
    assert_type(await lock.acquire(), bool)
    assert_type(await alocks.inspect("key"), list[LockInfo])
    assert_type(await alocks.check(), list[Finding])
    assert_type(alocks.held_locks(), list[AsyncLock])


@locks.locked("orders:{order_id}")
def ship(order_id: int) -> str:
    """Ship an order."""
    return f"shipped {order_id}"


@locks.locked("orders:{order_id}", timeout=0)
async def ship_later(order_id: int) -> str:
    """Ship an order."""
    return f"shipped {order_id}"


async def a_decorated_function_keeps_its_types() -> None:
    """Its arguments and what it returns."""
    assert_type(ship(1), str)
    assert_type(await ship_later(1), str)
    ship("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def what_the_database_tells() -> None:
    """Holders, waiters and findings."""
    for info in locks.inspect():
        assert_type(info.key, str | None)
        assert_type(info.waiters, tuple[LockWaiter, ...])
        assert_type(locks.terminate(info), bool)
    assert_type(locks.held_locks(), list[Lock | AsyncLock])
    assert_type(run_locked(locks, "key", ["true"]), int)


def tell(event: LockEvent) -> None:
    """Listen to events, each with what it alone tells."""
    match event:
        case LockAcquired():
            assert_type(event.waited, float)
        case LockReleased() | LockLost():
            assert_type(event.held_for, float)
        case _:
            assert_type(event.mode, str)


locks.listen(tell)()


def an_error_tells_what_it_knows(error: LockTimeoutError) -> TimeoutError:
    """It is a built-in error as well."""
    assert_type(error.timeout, float | None)
    return error


def a_sadlock_knows_what_it_is_on(connection: Connection, session: Session) -> None:
    """The kind of the connection or session stays."""
    with create_sadlock(connection, "key") as lock:
        assert_type(lock, SadLock[Connection])
    assert_type(create_sadlock(session, 7, 5.0).connection_or_session, Session)
    create_sadlock("sqlite://", 7)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


async def an_async_sadlock_too(session: AsyncSession) -> None:
    """With the verbs of sqlalchemy-dlock."""
    async with create_async_sadlock(session, "key") as lock:
        assert_type(lock, AsyncSadLock[AsyncSession])
    await lock.aclose()


def doubles_for_tests(given: Any) -> None:
    """The database in memory, and another holder."""
    with MemoryDatabase() as database, database.held("key") as held, hold(database.provider(), given) as other:
        assert_type(database.provider(), LockProvider)
        assert_type(held, Lock)
        assert_type(other, Lock)
