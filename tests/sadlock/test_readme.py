"""The README of sqlalchemy-dlock 0.9, with nothing changed but the import and the URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing
from functools import wraps
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import scoped_session, sessionmaker

from dlock_core import create_async_sadlock, create_sadlock

from .scene import Scene

sync_rows = pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory)
async_rows = pytest.mark.rows(lambda row: row.api == "async")
pytestmark = pytest.mark.kinds("connection")


@sync_rows
def test_basic_usage(scene: Scene) -> None:
    """Acquire and release."""
    engine = create_engine(scene.house.url)
    with engine.connect() as conn:
        lock = create_sadlock(conn, "my-resource-key")
        lock.acquire()
        assert lock.locked
        assert scene.holders == 1
        lock.release()
        assert not lock.locked
    engine.dispose()


@sync_rows
def test_using_context_managers(scene: Scene) -> None:
    """`with`, and `closing`, which does not acquire."""
    engine = create_engine(scene.house.url)
    with engine.connect() as conn:
        with create_sadlock(conn, "my-resource-key") as lock:
            assert lock.locked
            assert scene.holders == 1
        assert not lock.locked
        with closing(create_sadlock(conn, "my-resource-key")) as lock:
            assert not lock.locked
            lock.acquire()
            assert lock.locked
        assert not lock.locked
    engine.dispose()


@sync_rows
def test_with_timeout(scene: Scene) -> None:
    """The built-in TimeoutError."""
    engine = create_engine(scene.house.url)
    with engine.connect() as conn, scene.client().lock("my-resource-key"):
        said = ""
        try:
            with create_sadlock(conn, "my-resource-key", contextual_timeout=0.1):
                pass
        except TimeoutError:
            said = "Could not acquire lock - resource is busy"
        assert said
    engine.dispose()


@sync_rows
@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_key_conversion(scene: Scene) -> None:
    """`convert=int`."""
    engine = create_engine(scene.house.url)
    with engine.connect() as conn:
        lock = create_sadlock(conn, "42", convert=int)
        assert lock.actual_key == 42
    engine.dispose()


@sync_rows
def test_use_case_1_billing_once_per_user(scene: Scene) -> None:
    """A second worker fails at once, and a transaction inside is the user's."""
    url = scene.house.url

    def process_monthly_billing(user_id: int, calculate: Callable[[], None]) -> None:
        engine = create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as conn:
            lock_key = f"billing:user:{user_id}"
            with create_sadlock(conn, lock_key, contextual_timeout=0):
                calculate()

    def compete() -> None:
        with pytest.raises(TimeoutError):
            process_monthly_billing(1, lambda: pytest.fail("billed twice"))
        process_monthly_billing(2, lambda: None)

    process_monthly_billing(1, compete)


@async_rows
def test_use_case_2_an_endpoint(scene: Scene) -> None:
    """409 while an export runs, and the session's work goes through in its body."""
    engine = create_async_engine(scene.house.url)
    async_session_local: Any = sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)  # type: ignore[call-overload]

    async def export_resource(resource_id: str, perform: Callable[[AsyncSession], Any]) -> Any:
        async with async_session_local() as session:
            lock = create_async_sadlock(session, f"export:{resource_id}")
            acquired = await lock.acquire(block=False)
            if not acquired:
                return 409
            try:
                return await perform(session)
            finally:
                await lock.release()

    async def perform(session: AsyncSession) -> Any:
        assert await export_resource("a", perform) == 409
        return await session.scalar(text("SELECT 200"))

    async def main() -> None:
        assert await export_resource("a", perform) == 200
        assert await export_resource("a", perform) == 200
        await engine.dispose()

    scene.run(main)


@sync_rows
def test_use_case_4_a_decorator(scene: Scene) -> None:
    """A lock for each call."""
    url = scene.house.url

    def with_db_lock(key_func: Callable[..., str], timeout: float | None = None) -> Callable[..., Any]:
        def decorator(func: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(func)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                engine = create_engine(url)
                lock_key = key_func(*args, **kwargs)
                with engine.connect() as conn, create_sadlock(conn, lock_key, contextual_timeout=timeout):
                    held = func(*args, **kwargs)
                engine.dispose()
                return held

            return wrapper

        return decorator

    @with_db_lock(lambda user_id: f"user:update:{user_id}", timeout=10)
    def update_user_profile(user_id: int) -> tuple[int, int]:
        return user_id, scene.holders

    assert update_user_profile(7) == (7, 1)
    assert scene.holders == 0


@sync_rows
def test_working_with_the_orm(scene: Scene) -> None:
    """The commit inside the block leaves the lock held to its end; a scoped session does the same."""
    engine = create_engine(scene.house.url)
    maker = sessionmaker(bind=engine)
    with maker() as session, create_sadlock(session, "my-resource-key") as lock:
        session.execute(text("INSERT INTO work VALUES (100)"))
        session.commit()
        assert lock.locked
        assert scene.holders == 1
    registry = scoped_session(maker)
    with create_sadlock(registry, "my-resource-key"):
        registry.execute(text("INSERT INTO work VALUES (200)"))
        registry.commit()
        assert scene.holders == 1
    registry.remove()
    engine.dispose()
    assert scene.holders == 0
    assert scene.rows == [100, 200]


@async_rows
def test_asynchronous_io(scene: Scene) -> None:
    """`async with`, `aclosing`, and a scoped session of each task."""
    engine = create_async_engine(scene.house.url)

    async def main() -> None:
        async with engine.connect() as conn:
            async with create_async_sadlock(conn, "my-resource-key") as lock:
                assert lock.locked
                assert scene.holders == 1
            assert not lock.locked
            async with aclosing(create_async_sadlock(conn, "my-resource-key")) as lock:
                assert not lock.locked
                await lock.acquire()
                assert lock.locked
            assert not lock.locked
        registry = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        async with create_async_sadlock(registry, "my-resource-key"):
            await registry.execute(text("INSERT INTO work VALUES (1)"))
            await registry.commit()
            assert scene.holders == 1
        await registry.remove()
        await engine.dispose()

    scene.run(main)
    assert scene.rows == [1]


@sync_rows
@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_transaction_level_lock(scene: Scene) -> None:
    """Released by the commit inside the block."""
    engine = create_engine(scene.house.url)
    with engine.connect() as conn, create_sadlock(conn, "my-key", xact=True) as lock:
        conn.execute(text("INSERT INTO work VALUES (1)"))
        conn.commit()
        assert not lock.locked
        assert scene.holders == 0
    engine.dispose()
    assert scene.rows == [1]


@sync_rows
@pytest.mark.rows(lambda row: row.shared)
def test_shared_lock_for_read_heavy_workloads(scene: Scene) -> None:
    """Readers together; a writer commits inside its lock."""
    engine = create_engine(scene.house.url)

    def read_resource(resource_id: str) -> sa.Row[Any]:
        with engine.connect() as conn, create_sadlock(conn, f"resource:{resource_id}", shared=True):
            return conn.execute(text("SELECT count(*) FROM work")).one()

    def write_resource(resource_id: str) -> None:
        with engine.connect() as conn, create_sadlock(conn, f"resource:{resource_id}") as lock:
            conn.execute(text("INSERT INTO work VALUES (1)"))
            conn.commit()
            assert lock.locked

    with scene.client().lock("resource:1", shared=True):
        assert read_resource("1")[0] == 0
    write_resource("1")
    assert read_resource("1")[0] == 1
    engine.dispose()
