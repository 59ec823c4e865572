"""Frozen processes and networks that fall silent: the lease, and the heartbeat's deadline."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dlock_core import LockConnectionError, LockLostError, LockProvider, UnsupportedError
from dlock_core.sessions.watch import TICK, clock
from tests.contract.house import House, until
from tests.contract.persons import AnyLock
from tests.servers import Proxy

from .freezing import freeze

LEASE = 2
HEARTBEAT = 1
# The heartbeat, its deadline, the watch's round, and what a busy machine adds.
SILENCE = HEARTBEAT + HEARTBEAT + TICK + 1
SOME = {
    "postgresql-psycopg2",
    "postgresql-asyncpg",
    "mariadb-mysqlclient",
    "mariadb-aiomysql",
    "mariadb-pymysql-alock",
}
KINDS = {"postgresql", "mysql", "mariadb"}
ON_SOME = pytest.mark.rows(lambda row: row.name in SOME)


@contextmanager
def frozen_holder(house: House) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock on lease, and will be frozen."""
    command = [sys.executable, "-m", "tests.fault.frozen", house.url, str(LEASE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.rows(lambda row: row.server in KINDS and row.api == "sync" and row.share_sessions)
def test_a_frozen_holder_loses_its_lock_and_knows_it_before_it_is_asked(house: House) -> None:
    """Another process has the lock within 3 s; after SIGCONT the holder's first look is right."""
    with frozen_holder(house) as holder:
        assert said(holder) == "asks"
        assert said(holder) == "holds"
        time.sleep(LEASE + 0.5)  # it renews itself: the lease alone takes nothing away
        stranger = house.stranger()
        assert not stranger.acquire("k", timeout=0)
        frozen = time.monotonic()
        freeze(holder)
        assert stranger.acquire("k", timeout=10)
        assert time.monotonic() - frozen < 3
        holder.send_signal(signal.SIGCONT)
        assert said(holder) == "not-held lost"
        assert said(holder) == "LockLostError"
        assert house.witness.holders() == 1
        stranger.release()
        assert said(holder) == "again"
        assert holder.wait(10) == 0


@pytest.mark.rows(lambda row: row.server in KINDS and row.api == "sync" and row.share_sessions)
def test_a_frozen_waiter_does_not_take_an_old_grant_for_a_new_one(house: House) -> None:
    """Granted while it could not look, and lost again: it says so, or asks once more and waits for its turn."""
    stranger = house.stranger()
    assert stranger.acquire("k")
    with frozen_holder(house) as waiter:
        assert said(waiter) == "asks"
        until(lambda: house.witness.waiters() == 1, "the wait at the server")
        freeze(waiter)
        stranger.release()
        until(lambda: house.witness.holders() == 1, "the grant that is not read")
        assert stranger.acquire("k", timeout=10)
        waiter.send_signal(signal.SIGCONT)
        until(lambda: house.witness.waiters() == 1, "the waiter to understand")
        stranger.release()
        assert said(waiter) in {"holds", "LockConnectionError"}


@ON_SOME
@pytest.mark.parametrize("options", [{"heartbeat": HEARTBEAT}, {"lease": LEASE}], ids=["heartbeat", "lease"])
def test_a_long_wait_at_the_server_is_no_silence(house: House, options: dict[str, Any]) -> None:
    """What is granted after a wait longer than any silence allowed is held from then on."""
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append, **options)
    person, stranger = house.person(provider), house.stranger()
    assert stranger.acquire("k")
    wait = person.begin("k", timeout=30)
    until(lambda: house.witness.waiters() == 1, "the wait at the server")
    time.sleep(3)
    stranger.release()
    assert wait.result(10)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert person.locks[0].held
        time.sleep(0.01)
    assert heard == []
    person.release()


@pytest.mark.rows(lambda row: row.server in KINDS and row.api == "sync" and not row.share_sessions)
def test_a_long_wait_on_the_owners_session_loses_nothing_that_it_holds(house: House) -> None:
    """Where all of one owner's locks are on one session."""
    provider = house.new_provider(heartbeat=HEARTBEAT)
    person, stranger = house.person(provider), house.stranger()
    assert person.acquire("kept")
    assert stranger.acquire("k")
    assert not person.acquire("k", timeout=3)
    time.sleep(1)
    assert person.locks[0].held
    assert house.witness.holders() == 2
    person.release()
    stranger.release()


@ON_SOME
def test_a_lease_renews_itself_while_the_lock_is_held(house: House) -> None:
    """For several times its length, without a word from the user."""
    heard: list[AnyLock] = []
    person = house.person(house.new_provider(lease=LEASE, on_lost=heard.append))
    assert person.acquire("k")
    end = time.monotonic() + 2.2 * LEASE
    while time.monotonic() < end:
        assert person.locks[0].held
        time.sleep(0.05)
    assert house.witness.holders() == 1
    assert heard == []
    person.release()


@pytest.mark.rows(lambda row: row.server == "sqlite" and row.api == "sync")
def test_sqlite_has_no_lease(house: House) -> None:
    """There is no server that could end a session; the error says which databases have one."""
    with pytest.raises(UnsupportedError, match=r"lease=2\.0: sqlite cannot end a silent session; PostgreSQL"):
        house.new_provider(lease=2)


def test_a_lease_needs_shared_sessions_and_a_second() -> None:
    """A session that waits at the server cannot prove its life, and servers count in seconds."""
    with pytest.raises(ValueError, match=r"lease with share_sessions=False"):
        LockProvider("sqlite://", lease=2, share_sessions=False)
    with pytest.raises(ValueError, match=r"lease=0\.5: give seconds, 1 or more"):
        LockProvider("sqlite://", lease=0.5)


@pytest.fixture
def proxy(house: House) -> Iterator[Proxy]:
    """A network between the house's providers and its server."""
    assert house.server is not None
    with Proxy(house.server) as proxy:
        house.url = proxy.url(house.row.drivername)
        yield proxy


@ON_SOME
def test_a_silent_network_is_a_loss_within_heartbeat_and_deadline(house: House, proxy: Proxy) -> None:
    """No packet says so; a release does not wait for the network."""
    heard: list[AnyLock] = []
    person = house.person(house.new_provider(heartbeat=HEARTBEAT, on_lost=heard.append))
    assert person.acquire("k")
    proxy.cut()
    cut = time.monotonic()
    until(lambda: heard, "the silence to be noticed")
    assert time.monotonic() - cut < SILENCE
    assert person.locks[0].lost
    with pytest.raises(LockLostError):
        person.do(person.locks[0].release)
    proxy.restore()
    assert person.acquire("other", timeout=5)
    person.release()


@ON_SOME
def test_what_is_asked_of_a_silent_network_ends_with_the_heartbeats_deadline(house: House, proxy: Proxy) -> None:
    """A release and an acquisition under way when the network falls silent are reported, too."""
    provider = house.new_provider(heartbeat=HEARTBEAT)
    holder, asker = house.person(provider), house.person(provider)
    assert holder.acquire("k")
    proxy.cut()
    cut = time.monotonic()
    release = holder.submit(holder.locks[0].release)
    ask = asker.begin("other", timeout=30)
    with pytest.raises(LockLostError):
        release.result(10)
    assert time.monotonic() - cut < SILENCE
    proxy.restore()
    try:
        assert ask.result(10)
        asker.release()
    except LockConnectionError:
        pass  # it was on the session that ended: an honest answer as well


@ON_SOME
def test_behind_a_silent_network_no_holder_believes_longer_than_the_lease(house: House, proxy: Proxy) -> None:
    """When another one gets the lock, which has a way of its own to the server, the holder knows already."""
    assert house.server is not None
    person = house.person(house.new_provider(lease=LEASE))
    house.url = house.server.url(house.row.drivername)
    stranger = house.stranger()
    assert person.acquire("k")
    time.sleep(LEASE)  # it has renewed itself
    cut = clock()
    proxy.cut()
    wait = stranger.begin("k", timeout=10)
    while person.locks[0].held:
        assert not wait.done()
        assert clock() < cut + LEASE + 0.5
        time.sleep(0.001)
    assert person.locks[0].lost
    assert wait.result(10)
    stranger.release()
    with pytest.raises(LockLostError):
        person.do(person.locks[0].close)


@ON_SOME
@pytest.mark.parametrize("timeout", [0, 1])
def test_no_caller_waits_for_ever_for_a_network_that_is_silent(
    house: House, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, timeout: int
) -> None:
    """Nothing is held, and a caller gets a clear error soon after its timeout, not when the system gives up."""
    monkeypatch.setattr("dlock_core.sessions.watch.PATIENCE", HEARTBEAT)
    person, stranger = house.person(house.new_provider()), house.stranger()
    assert person.acquire("k")
    person.release()
    assert person.acquire("k", timeout=5)  # its session is in use
    person.release()
    assert stranger.acquire("other")
    wait = person.begin("other", timeout=timeout) if timeout else None
    if timeout:
        until(lambda: house.witness.waiters() == 1, "the wait at the server")
    proxy.cut()
    cut = time.monotonic()
    with pytest.raises(LockConnectionError, match="has not answered in time"):
        wait.result(30) if wait else person.acquire("k", timeout=0)
    assert time.monotonic() - cut < timeout + HEARTBEAT + TICK + 1
    proxy.restore()
    stranger.release()
    assert person.acquire("k", timeout=5)
    person.release()
