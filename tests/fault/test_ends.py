"""However a process, a loop or an object ends, its locks end with it."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core import AsyncLockProvider
from tests.contract.house import House, until
from tests.contract.rows import Row

WAYS = ["returns", "sys.exit", "os._exit", "raises"]
SYNC_WAYS = [
    *WAYS,
    "releases in atexit",
    "takes another in atexit",
    "with a thread that waits",
    "with a thread that holds",
    "forgets",
]
# How long an ending program may take in all, in seconds: it hangs or it does not.
PATIENCE = 20.0
KINDS = {"postgresql", "mysql", "mariadb", "mssql", "sqlite"}


def _real(row: Row) -> bool:
    return row.server in KINDS and not row.is_standin


not_in_memory = pytest.mark.rows(
    lambda row: (
        row.server in KINDS and not row.is_standin and row.api == "sync" and not row.in_memory and row.share_sessions
    )
)
over_async_drivers = pytest.mark.rows(lambda row: _real(row) and row.api == "async" and row.share_sessions)
# Drivers complain of connections whose loop is gone before they are; so they do of the application's own.
COMPLAINTS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def drivers_may_complain(test: Callable[..., None]) -> Callable[..., None]:
    """Let drivers complain in this test and its clean-up, and not in the next one's."""
    marked: Callable[..., None] = pytest.mark.usefixtures("garbage_collected")(COMPLAINTS(test))
    return marked


@pytest.fixture
def garbage_collected() -> Iterator[None]:
    """Collect what the test has left to the collector."""
    yield
    for _ in range(3):
        gc.collect()


def ends(house: House, way: str, api: str) -> subprocess.Popen[str]:
    """Run a program that takes a lock, and let it end."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.ending", house.url, way, api],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "held\n"
    return program


def check_end(program: subprocess.Popen[str], way: str) -> None:
    """See that it ended by itself, and said nothing but what it should."""
    _, errors = program.communicate("\n", timeout=PATIENCE)
    assert ("ZeroDivisionError" in errors) is (way == "raises")
    assert "dlock_core" not in errors, errors  # not even a traceback of ours
    assert program.returncode == (way == "raises")


@not_in_memory
@pytest.mark.parametrize("way", SYNC_WAYS)
def test_a_process_that_ends_leaves_no_lock(house: House, way: str) -> None:
    """And does not hang, nor fail, in its last moments."""
    program = ends(house, way, "sync")
    if way != "forgets":
        assert house.witness.holders() >= 1
    check_end(program, way)
    until(lambda: house.witness.holders() == 0 and house.witness.waiters() == 0, "the ended program's locks")


@over_async_drivers
@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_ends_over_an_async_driver_leaves_no_lock(house: House, way: str) -> None:
    """Its loop is closed by then, or gone with it."""
    check_end(ends(house, way, "async"), way)
    until(lambda: house.witness.holders() == 0, "the ended program's locks")


def collected(action: Callable[[], object]) -> list[str]:
    """Return the texts of the ResourceWarnings that an action and a collection of garbage bring."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
        gc.collect()
    return [str(one.message) for one in caught if one.category is ResourceWarning]


@drivers_may_complain
def test_an_abandoned_lock_is_released_with_a_warning(house: House) -> None:
    """Python tells when the object is garbage; the key is in the warning."""
    provider = house.new_provider()
    maker = house.maker(provider)

    async def forget_in_task() -> None:
        await maker("abandoned").acquire()

    def forget() -> None:
        if house.row.api == "sync":
            maker("abandoned").acquire()
        else:
            house.loop.run(forget_in_task())

    assert any("'abandoned'" in text for text in collected(forget))
    until(lambda: house.witness.holders() == 0, "the abandoned lock to be free")
    person = house.person(provider)
    assert person.acquire("abandoned", timeout=5)
    person.release()


@drivers_may_complain
def test_a_lock_abandoned_in_a_circle_with_its_error(house: House) -> None:
    """A traceback keeps objects alive until the collector comes."""
    maker = house.maker(house.new_provider())

    def forget() -> None:
        circle: dict[str, Any] = {}
        circle["lock"] = maker("k")
        circle["self"] = circle
        if house.row.api == "sync":
            circle["lock"].acquire()
        else:
            house.loop.run(circle["lock"].acquire())

    assert any("'k'" in text for text in collected(forget))
    until(lambda: house.witness.holders() == 0, "the abandoned lock to be free")


@over_async_drivers
@drivers_may_complain
def test_one_provider_serves_one_loop_after_the_other(house: House) -> None:
    """As under pytest, asgiref or a script with several asyncio.run."""
    engine = create_async_engine(house.url)
    locks = AsyncLockProvider(engine)

    async def use() -> bool:
        async with locks.lock("k", timeout=5) as lock:
            return lock.held

    async def close() -> None:
        await locks.close()
        await engine.dispose()

    assert [asyncio.run(use()) for _ in range(3)] == [True] * 3
    asyncio.run(close())


@pytest.mark.rows(lambda row: _real(row) and row.is_server and row.api == "async")
@drivers_may_complain
def test_a_lock_whose_loop_is_closed_is_lost_at_once(house: House) -> None:
    """Nothing can release it any more: it is free at the server, and its object knows."""
    heard: list[Any] = []
    engine = create_async_engine(house.url)
    locks = AsyncLockProvider(engine, on_lost=heard.append, share_sessions=house.row.share_sessions)
    lock = locks.lock("k")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(lock.acquire())
        until(lambda: lock.lost, "the watch to see that the loop is closed")
        until(lambda: heard == [lock], "on_lost")
        until(lambda: any("'k'" in str(one.message) for one in list(caught)), "a warning that names the key")
    until(lambda: house.witness.holders() == 0, "the lock to be free")

    async def again() -> bool:
        async with locks.lock("k", timeout=5) as second:
            return second.held

    assert asyncio.run(again())
    asyncio.run(locks.close())


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-pymysql", "sqlite-file"})
def test_nothing_of_ours_runs_when_no_session_is_open(house: House) -> None:
    """Not a second after the provider is closed: no watch, and workers only as long as they may be wanted again."""
    program = (
        "import sys, threading, time\n"
        "from dlock_core import LockProvider\n"
        "locks = LockProvider(sys.argv[1])\n"
        "with locks.lock('k'):\n"
        "    pass\n"
        "locks.close()\n"
        "end = time.monotonic() + 10\n"
        "while any(t.name == 'dlock-watch' for t in threading.enumerate()) and time.monotonic() < end:\n"
        "    time.sleep(0.05)\n"
        "print(sorted({t.name for t in threading.enumerate()}))\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, house.url], capture_output=True, text=True, check=True)
    assert done.stdout == "['MainThread', 'dlock-worker']\n", done.stderr
    assert time.monotonic() - started < PATIENCE
