"""What a conflict costs the database: the holder of a key is asked for only when it will be read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery

from dlock_celery import DLock, LockConflictError, get_provider, lock_conflict, single_instance
from dlock_core import LockProvider
from tests.conftest import server

BURST = 24


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with its locks on a server, on which another program holds some keys."""
    url = server("mariadb").url("mysql+pymysql")
    app = Celery("conflicts", set_as_current=False, backend="cache+memory://", broker="memory://")
    DLock(app, url=url)
    with LockProvider(url) as other, ExitStack() as held:
        for number in range(3):
            held.enter_context(other.lock(f"k:{number}"))
        yield app
    get_provider(app).close()
    app.close()


@pytest.fixture
def opened() -> Iterator[Callable[[], int]]:
    """How many connections the server has been asked for so far, as it counts them."""
    with server("mariadb").connect() as connection:

        def count() -> int:
            [(_, value)] = connection.execute(sa.text("SHOW GLOBAL STATUS LIKE 'Connections'")).all()
            return int(value)

        yield count


def burst(app: Celery, policy: str) -> Callable[[], list[Any]]:
    """Return what meets the held key in many threads at once; its lock session is open already."""

    @app.task(name=policy, shared=False)
    @single_instance(key="k:{number}", on_conflict=policy)  # type: ignore[call-overload]
    def task(number: int) -> str:
        return "ran"

    def meet(_: int) -> Any:
        try:
            return task(0)
        except LockConflictError as error:
            return error

    def run() -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(meet, range(BURST)))

    assert task(9) == "ran"
    return run


@pytest.mark.parametrize("policy", ["skip", "raise"])
@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_a_burst_of_conflicts_asks_for_the_holder_once_a_second_at_most(
    app: Celery, opened: Callable[[], int], caplog: pytest.LogCaptureFixture, policy: str, level: int
) -> None:
    """And never, when no error and no log would say it."""
    read = policy == "raise" or level == logging.INFO
    with caplog.at_level(level, "dlock.celery"):
        run = burst(app, policy)
        before, started = opened(), time.monotonic()
        ends = run()
    asked, seconds = opened() - before, time.monotonic() - started
    assert (1 if read else 0) <= asked <= (1 + seconds if read else 0)
    if policy == "raise":
        assert all(isinstance(end, LockConflictError) and "is held by" in str(end) for end in ends)
    else:
        assert ends == [None] * BURST
    said = [record for record in caplog.records if "skipped" in record.getMessage()]
    assert len(said) == (BURST if (policy, level) == ("skip", logging.INFO) else 0)
    assert all("is held by" in record.getMessage() for record in said)


def test_a_receiver_of_the_signal_learns_the_holder(app: Celery, opened: Callable[[], int]) -> None:
    """Each time, for one question."""
    heard: list[str | None] = []

    def receive(holder: str | None, **_: Any) -> None:
        heard.append(holder)

    run = burst(app, "skip")
    before, started = opened(), time.monotonic()
    lock_conflict.connect(receive)
    try:
        run()
    finally:
        lock_conflict.disconnect(receive)
    assert 1 <= opened() - before <= 1 + time.monotonic() - started
    assert len(heard) == BURST
    assert all(heard)
