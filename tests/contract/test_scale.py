"""Many askers, many keys, few sessions."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dlock_core import DeadlockError, LockLostError
from dlock_core.dialects.mssql import MSSQL
from dlock_core.sessions.session import SqlSession
from dlock_core.sessions.watch import Watch
from tests.pace import promptly

from .house import House, until
from .persons import AnyLock, Person

# Where there are sessions to count.
ON_SERVER = pytest.mark.rows(lambda row: row.is_server and row.share_sessions)
WITH_SOCKET = pytest.mark.rows(lambda row: row.is_server and row.share_sessions and not row.in_memory)


def _queue_is(house: House, length: int) -> bool:
    entries = house.provider._coordinator.entries
    return sum(len(entry.queue) for entry in list(entries._entries.values())) == length


def _our_sessions(house: House) -> int:
    return house.witness.sessions() - house.sessions_before


@ON_SERVER
def test_a_hundred_held_locks_cost_one_session(house: House) -> None:
    """All that is granted at once lives on the shared session."""
    person = house.person()
    for number in range(100):
        assert person.acquire(number)
    assert house.witness.holders() == 100
    assert _our_sessions(house) == 1
    for lock in person.locks:
        person.do(lock.release)
    assert house.witness.holders() == 0


@ON_SERVER
def test_a_crowd_that_waits_for_one_key_costs_two_sessions(house: House) -> None:
    """One head waits at the server; the others queue in memory."""
    stranger, people = house.stranger(), [house.person() for _ in range(60)]
    assert stranger.acquire("k")
    before = _our_sessions(house)
    waits = [person.begin_within("k", lambda _: None, timeout=30) for person in people]
    until(lambda: _queue_is(house, 59))
    until(lambda: house.witness.waiters() == 1)
    assert _our_sessions(house) - before == 2
    stranger.release()
    for wait in waits:
        wait.result(20)


@ON_SERVER
def test_waits_for_many_keys_stay_within_max_sessions(house: House) -> None:
    """Beyond the limit they poll, and all get their key in the end."""
    provider = house.new_provider(max_sessions=4)
    stranger, people = house.stranger(), [house.person(provider) for _ in range(30)]
    for number in range(30):
        assert stranger.acquire(number)
    before = _our_sessions(house)
    waits = [person.begin(number, timeout=30) for number, person in enumerate(people)]
    until(lambda: house.witness.waiters() == 3)
    until(lambda: len(provider._coordinator.entries._entries) == 30)
    assert _our_sessions(house) - before == 4
    for lock in stranger.locks:
        stranger.do(lock.release)
    for wait, person in zip(waits, people, strict=True):
        assert wait.result(20)
        person.release()


@pytest.mark.rows(lambda row: row.share_sessions)
def test_a_lock_is_handed_on_in_memory(house: House) -> None:
    """Within a turn the next waiter gets it while the server sees one holder all the time."""
    people, inside = [house.person() for _ in range(10)], []
    holder = house.person()
    assert holder.acquire("k")
    session = holder.locks[0]._ticket.session  # type: ignore[union-attr]

    def body(lock: AnyLock) -> None:
        assert lock._ticket is not None
        inside.append(lock._ticket.session)

    waits = []
    for number, person in enumerate(people):
        waits.append(person.begin_within("k", body, timeout=30))
        until(partial(_queue_is, house, number + 1))
    _begin_turn(holder)
    holder.release()
    for wait in waits:
        wait.result(20)
    assert inside[0] is session
    assert house.witness.holders() == 0


def _begin_turn(holder: Person) -> None:
    """Let the holder's turn begin now: preparing the test took longer than a turn lasts."""
    ticket = holder.locks[-1]._ticket
    assert ticket is not None
    assert ticket.hold is not None
    ticket.hold.until = time.monotonic() + 5


@WITH_SOCKET
def test_a_turn_ends_after_its_grants(house: House) -> None:
    """The server is asked again after 64 grants, however fast they are."""
    holder, people = house.person(), [house.person() for _ in range(80)]
    assert holder.acquire("k")
    hold = holder.locks[0]._ticket.hold  # type: ignore[union-attr]
    holds = []
    waits = [
        person.begin_within("k", lambda lock: holds.append(lock._ticket.hold), timeout=30)  # type: ignore[union-attr]
        for person in people
    ]
    until(lambda: _queue_is(house, 80))
    _begin_turn(holder)
    holder.release()
    for wait in waits:
        wait.result(20)
    assert sum(one is hold for one in holds) == 64


def _before_the_end_of_a_turn(house: House, provider: Any) -> tuple[Person, Person, Person, Any, Any]:
    """Let one of a provider hold what it waited for; a stranger waits behind it, and in memory the next of its own."""
    entries = provider._coordinator.entries
    entries._turn_grants = 0
    one, two, blocker, other = house.person(provider), house.person(provider), house.stranger(), house.stranger()
    assert blocker.acquire("k")
    granted = one.begin("k", timeout=30)
    until(lambda: house.witness.waiters() == 1)
    others = other.begin("k", timeout=30)
    until(lambda: house.witness.waiters() == 2)
    next_of_ours = two.begin("k", timeout=30)
    until(lambda: entries._awaited)
    blocker.release()
    assert granted.result(5)
    return one, two, other, next_of_ours, others


@WITH_SOCKET
def test_a_process_waits_at_the_server_again_as_its_turn_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder's release lets the next one wait on the same session, in one statement where the server can.

    However slowly it runs, no other process can take the lock twice meanwhile.
    """
    provider = house.new_provider()
    one, two, other, next_of_ours, others = _before_the_end_of_a_turn(house, provider)
    asked: list[SqlSession] = []
    first = SqlSession.first

    def note(session: SqlSession, *arguments: Any, **values: Any) -> Any:
        if session is ours:
            asked.append(session)
        return first(session, *arguments, **values)

    ours = one.locks[0]._ticket.session  # type: ignore[union-attr]
    monkeypatch.setattr(SqlSession, "first", note)
    one.release()
    assert others.result(5)
    until(lambda: house.witness.waiters() == 1)
    assert len(asked) == (2 if isinstance(provider._coordinator.locks, MSSQL) else 1)
    other.release()
    assert next_of_ours.result(5)
    assert two.locks[0]._ticket.session is ours  # type: ignore[union-attr]
    two.release()
    assert house.witness.holders() == 0


@WITH_SOCKET
def test_one_that_leaves_as_its_process_turn_ends_leaves_the_lock_free(house: House) -> None:
    """It is called off before it has put the lock back, so that is done for it."""
    provider = house.new_provider()
    one, _, other, next_of_ours, others = _before_the_end_of_a_turn(house, provider)
    [policy] = provider._coordinator._policies.values()
    policy.wait = raise_in  # type: ignore[method-assign]
    one.release()
    assert isinstance(next_of_ours.exception(5), ZeroDivisionError)
    assert others.result(5)
    assert house.witness.waiters() == 0
    other.release()
    assert house.witness.holders() == 0


def raise_in(ticket: Any) -> bool:
    """Fail before anything is said to the server."""
    assert ticket.again
    raise ZeroDivisionError


def test_nothing_is_granted_from_memory_on_a_dead_session(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session ends with a queue behind it, a stranger takes the lock: the queue waits for it.

    The watch would tell the queue at once, so it sleeps here.
    """
    monkeypatch.setattr(Watch, "add", lambda _watch, _session: None)
    holder, stranger, people = house.person(), house.stranger(), [house.person() for _ in range(5)]
    assert holder.acquire("k")
    waits = []
    for number, person in enumerate(people):
        waits.append(person.begin_within("k", lambda _: house.witness.holders(), timeout=30))
        until(partial(_queue_is, house, number + 1))
    house.witness.break_lock()
    assert stranger.acquire("k", timeout=5)
    _begin_turn(holder)
    with pytest.raises(LockLostError):
        holder.do(holder.locks[0].release)
    with pytest.raises(TimeoutError):
        waits[0].result(0.3)
    assert not any(wait.done() for wait in waits)
    stranger.release()
    assert [wait.result(20) for wait in waits] == [1] * 5


def test_a_short_timeout_holds_up_no_other(house: House) -> None:
    """Those behind a waiter that gives up keep their places."""
    holder, short, long = house.stranger(), house.person(), house.person()
    assert holder.acquire("k")
    leaves = short.begin("k", timeout=0.1)
    until(lambda: bool(house.provider._coordinator.entries._entries))
    stays = long.begin("k", timeout=20)
    assert leaves.result(5) is False
    holder.release()
    assert stays.result(5)
    long.release()


@pytest.mark.rows(lambda row: row.api != "sync" and row.is_server and row.share_sessions)
def test_a_cancelled_task_costs_no_other_its_lock(house: House) -> None:
    """Tasks are cancelled at every moment of their try on the shared session; the held lock stays."""
    chance = random.Random(11)
    holder = house.person()
    assert holder.acquire("precious")
    session = holder.locks[0]._ticket.session  # type: ignore[union-attr]

    async def use(number: int) -> None:
        async with house.maker()(("other", number % 3), timeout=5):
            await asyncio.sleep(0)

    async def rounds() -> None:
        for number in range(150):
            task = asyncio.create_task(use(number))
            await asyncio.sleep(chance.uniform(0, 0.002))
            task.cancel()
            await asyncio.wait([task])

    house.loop.run(rounds())
    until(lambda: house.witness.holders() == 1)
    assert holder.locks[0].held
    assert holder.locks[0]._ticket.session is session  # type: ignore[union-attr]
    holder.release()


@pytest.mark.rows(lambda row: row.is_server and row.api == "sync" and row.share_sessions)
def test_a_circle_across_providers_ends_with_a_session_for_each_owner(house: House) -> None:
    """The server sees it, chooses a victim, and the other goes on; the victim keeps what it holds."""
    one, two = (house.person(house.new_provider(share_sessions=False)) for _ in range(2))
    assert one.acquire("x")
    assert two.acquire("y")
    waits = {one: one.begin("y", timeout=30)}
    until(lambda: house.witness.waiters() == 1)
    waits[two] = two.begin("x", timeout=30)
    until(lambda: any(wait.done() for wait in waits.values()))
    [victim] = [person for person, wait in waits.items() if wait.done()]
    other = two if victim is one else one
    assert isinstance(waits[victim].exception(), DeadlockError)
    assert victim.locks[0].held
    assert house.witness.holders() == 2
    victim.do(victim.locks[0].release)
    assert waits[other].result(5)
    for lock in other.locks:
        other.do(lock.close)


@ON_SERVER
def test_an_owners_locks_are_on_one_session_of_its_own(house: House) -> None:
    """`share_sessions=False`: as many sessions as owners, and none is left behind."""
    provider = house.new_provider(share_sessions=False)
    people = [house.person(provider) for _ in range(3)]
    for person in people:
        for number in range(4):
            assert person.acquire((id(person), number))
    assert _our_sessions(house) == 3
    for person in people:
        for lock in person.locks:
            person.do(lock.release)
    assert house.witness.holders() == 0
    until(lambda: _our_sessions(house) <= 2, "sessions without locks to be closed, but for two")


THREADS = """
import sys, threading, time
from dlock_core import LockProvider
locks, counts = LockProvider(sys.argv[1]), [0] * 8
with locks.lock("warm"):
    print("ready", flush=True)
end = float(sys.stdin.readline())
turns, last = 0, None
def work(n):
    global turns, last
    while time.monotonic() < end:
        with locks.lock("k", timeout=30) as lock:
            counts[n] += 1
            turns, last = turns + (lock._ticket.hold is not last), lock._ticket.hold
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(turns, sum(counts))
"""


@pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory and row.share_sessions)
def test_two_processes_with_queues_share_a_key(house: House) -> None:
    """2 processes x 8 threads: each gets a third of the turns at least.

    How many grants fit into a turn of 20 ms depends on the processor that a process gets, and where others keep the
    processors busy also how soon it comes back for its next turn.
    """
    command = [sys.executable, "-c", THREADS, house.url]
    crowd = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in crowd:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    end = f"{time.monotonic() + 4}\n"
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write(end)
        process.stdin.flush()
    (ours, grants), (theirs, others) = (map(int, process.communicate(timeout=60)[0].split()) for process in crowd)
    assert promptly((ours + theirs) / min(ours, theirs), 3), (ours, theirs)
    assert promptly((grants + others) / min(grants, others), 10), (grants, others)


@pytest.mark.rows(lambda row: row.shared and row.is_server and row.share_sessions)
def test_a_writer_elsewhere_gets_in_under_an_unending_stream_of_readers(house: House) -> None:
    """Readers join each other only within a turn; then they ask the server, behind the writer."""
    readers, writer = [house.person() for _ in range(4)], house.stranger()
    stop: list[bool] = []

    def read(person: Person) -> Callable[[], Any]:
        def again() -> Any:
            return person._within(house.maker()("k", shared=True, timeout=30), lambda _: time.sleep(0.005))

        return again

    def stream(person: Person) -> None:
        future = person.submit(read(person))
        future.add_done_callback(lambda _: None if stop else stream(person))

    for reader in readers:
        stream(reader)
    until(lambda: house.witness.holders() >= 1)
    try:
        assert writer.acquire("k", timeout=10)
        writer.release()
    finally:
        stop.append(True)


@ON_SERVER
def test_a_session_that_becomes_free_goes_to_the_first_in_line(house: House) -> None:
    """Waits beyond `max_sessions` poll in a line; one that got its lock by polling leaves it."""
    provider = house.new_provider(max_sessions=2)
    stranger, first, second, third = house.stranger(), *(house.person(provider) for _ in range(3))
    for number in range(3):
        assert stranger.acquire(number)
    waits = [first.begin(0, timeout=30)]
    until(lambda: house.witness.waiters() == 1)
    policy = next(iter(provider._coordinator._policies.values()))
    waits.append(second.begin(1, timeout=30))
    until(lambda: len(policy._line) == 1)
    waits.append(third.begin(2, timeout=30))
    until(lambda: len(policy._line) == 2)
    stranger.do(stranger.locks[1].release)
    assert waits[1].result(5)
    until(lambda: len(policy._line) == 1)
    stranger.do(stranger.locks[0].release)
    assert waits[0].result(5)
    first.release()
    until(lambda: house.witness.waiters() == 1, "the third to wait at the server")
    assert not policy._line
    stranger.do(stranger.locks[2].release)
    assert waits[2].result(5)
    second.release()
    third.release()
