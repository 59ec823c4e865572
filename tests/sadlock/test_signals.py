"""Signal handlers that raise in a main thread that takes locks: at random moments, and at every one in turn."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from dlock_core import create_sadlock
from tests.contract.house import until
from tests.fault.stepping import interrupted_at

from .clients import Client
from .scene import Scene, open_engines

pytestmark = [
    pytest.mark.kinds("connection", "session"),
    pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-pymysql", "sqlite-file"}),
]

SLOW = (pytest.mark.slow, pytest.mark.timeout(300))
# How many, with which seed, for each kind on each row: the slow ones are 2,000, in two programs.
SIGNALS = [(250, 20261128), *(pytest.param(1000, seed, marks=SLOW) for seed in (20261129, 20261130))]
# Between a call and our first line, no library can help: then a lock on a connection is free when the connection is
# closed or asked for it again. All others are free when the lock object is garbage.
BETWEEN_TWO_LINES = ("by_hand", "SadLock.__exit__", "SadLock.release", "SadLock.close", "SadLock._leave")
# Enough to see that the walks did not end at once.
MANY = 40
MANY_OF_A_WAIT = 15


@pytest.mark.parametrize(("signals", "seed"), SIGNALS)
def test_random_signals_leave_nothing(scene: Scene, signals: int, seed: int) -> None:
    """Neither at the server, nor in the pool; the program goes on with its connection, and ends well."""
    command = [sys.executable, "-m", "tests.sadlock.signalled", scene.house.url, scene.kind, str(signals), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            for said in ("over\n", "given back\n"):
                assert process.stdout.readline() == said
                since = time.monotonic()
                until(lambda: scene.holders == scene.witness.waiters() == 0, "all to be free")
                assert time.monotonic() - since < 2
                process.stdin.write("\n")
                process.stdin.flush()
            assert process.wait(20) == 0
        finally:
            process.kill()


def in_a_with(target: Any) -> None:
    """What all write."""
    with create_sadlock(target, "k", 5):
        pass


def by_hand(target: Any) -> None:
    """What is written where `with` does not fit."""
    lock = create_sadlock(target, "k")
    if lock.acquire(timeout=5):
        lock.release()


def closed(target: Any) -> None:
    """What others write."""
    lock = create_sadlock(target, "k")
    try:
        lock.acquire(False)
    finally:
        lock.close()


def to_the_end_of_the_transaction(target: Any) -> None:
    """The transaction that the lock begins is the caller's to end."""
    create_sadlock(target, "k", xact=True).acquire(timeout=5)


def walk(scene: Scene, use: Callable[[Any], None]) -> int:
    """Interrupt `use` at its first moment, its second and so on, until it ends before."""
    moment, hit = 0, True
    while hit:
        moment += 1
        client = Client.of(scene.kind, scene.engine, scene.run)
        with interrupted_at(moment) as stepper:
            use(client.target)
        hit, at = stepper.hit, f"the lock interrupted at {stepper.where}"
        client.rollback()
        if not (scene.kind == "connection" and stepper.where.endswith(BETWEEN_TWO_LINES)):
            until(lambda: scene.holders == 0, f"{at} to be free")
        with client.lock("k", 5) as again:
            assert again.locked
            assert scene.holders == 1
        assert scene.holders == 0, f"{at} is held after the next one"
        client.close()
        assert scene.pool().checkedout() == 0
        until(lambda: not open_engines(), f"{at} to leave its session")
    return moment


# Python drops what a handler raises in a destructor, here one of a driver's.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("use", [in_a_with, by_hand, closed])
def test_an_interrupt_at_any_moment_leaves_no_lock(scene: Scene, use: Callable[[Any], None]) -> None:
    """Neither at the server nor in the pool; the same connection or session gets the lock again."""
    assert walk(scene, use) > MANY


@pytest.mark.kinds("connection")
@pytest.mark.rows(lambda row: row.is_server)
def test_a_lock_lost_between_two_lines_does_not_go_into_the_pool(scene: Scene) -> None:
    """Closing the connection is enough, without another lock on it."""
    moment, hit = 0, True
    while hit:
        moment += 1
        client = Client.of(scene.kind, scene.engine, scene.run)
        with interrupted_at(moment) as stepper:
            by_hand(client.target)
        hit = stepper.hit
        client.close()
        until(lambda: scene.holders == 0, f"the lock interrupted at {stepper.where} to be free")
    assert moment > MANY


@pytest.mark.kinds("connection")  # a Session interrupted while it takes a connection leaves that out of its pool
@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_an_interrupt_at_any_moment_of_a_lock_of_the_transaction(scene: Scene) -> None:
    """A rollback of the caller's frees it at the latest."""
    assert walk(scene, to_the_end_of_the_transaction) > MANY


def test_an_interrupt_at_any_moment_of_a_wait(scene: Scene) -> None:
    """Another process holds the lock: the wait ends, in this process and at the server, and the client goes on."""
    holder = scene.house.stranger()
    assert holder.acquire("k")
    client = scene.client()
    moment, hit = 0, True
    while hit:
        moment += 1
        lock = create_sadlock(client.target, "k")
        with interrupted_at(moment) as stepper:
            assert not lock.acquire(timeout=0.05)
        hit = stepper.hit
        until(lambda: scene.witness.waiters() == 0, f"the wait interrupted at {stepper.where} to end")
        client.rollback()
        assert client.scalar("SELECT 1") == 1
        client.rollback()
    assert moment > MANY_OF_A_WAIT
    holder.release()
    with client.lock("k", 5):
        assert scene.holders == 1
