"""The watch and what it looks at, with real sockets and no server."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any

import pytest

from dlock_core import LockConnectionError
from dlock_core.sessions import watch as watching
from dlock_core.sessions import workers
from dlock_core.sessions.sockets import Peer, duplicate_socket, keep_alive
from dlock_core.sessions.watch import PATIENCE, Watch, clock
from dlock_core.sessions.workers import Serial

from .fake_server import until


class Session:
    """A session over one end of a pair of sockets; the other end is the server."""

    def __init__(self) -> None:
        ours, self.server = socket.socketpair()
        self.socket: socket.socket | None = ours
        self._peer = Peer(self.socket)
        self.locks = 1
        self.proof = clock()
        self.due = inf
        self.silent = self.ended = False
        self.loop_closed = self.waiting = self.lease_is_over = False
        self.beats = 0
        self.in_loop = False
        self.loops_calls: list[Callable[[], None]] = []

    def hung_up(self) -> bool:
        return self.loop_closed or self._peer.hung_up()

    def stirs(self) -> bool:
        return self._peer.stirs()

    def expired(self) -> bool:
        return self.lease_is_over

    def waits(self) -> bool:
        return self.waiting

    def beat(self) -> None:
        self.beats += 1

    def call_reader(self, function: Callable[[], None]) -> None:
        if self.in_loop:
            self.loops_calls.append(function)
        else:
            function()

    def park(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        assert self.socket is not None
        self.socket.close()
        self.server.close()


class Coordinator:
    """Hears of dead sessions, and ends them."""

    def __init__(self) -> None:
        self.dead: list[Session] = []

    def end(self, session: Any) -> None:
        self.dead.append(session)
        session.ended = True


@pytest.fixture
def coordinator() -> Coordinator:
    """What hears of dead sessions."""
    return Coordinator()


@pytest.fixture
def session() -> Iterator[Session]:
    """A session that holds a lock."""
    session = Session()
    yield session
    session.close()


_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Know the watches of other tests in this process, whose providers may still be open."""
    _others.clear()
    _others.update(threading.enumerate())


def threads() -> list[threading.Thread]:
    """Return the threads of this test's watches."""
    return [each for each in threading.enumerate() if each.name == "dlock-watch" and each not in _others]


def test_a_hang_up_is_reported_at_once_and_once(coordinator: Coordinator, session: Session) -> None:
    """Data before it is no matter: it is not read here."""
    watch = Watch(coordinator.end, heartbeat=None, lease=None)
    watch.add(session)
    session.server.sendall(b"a notice")
    session.server.close()
    until(lambda: coordinator.dead == [session])
    until(lambda: not threads())
    assert coordinator.dead == [session]
    assert watch.sessions == []


def test_a_round_starts_what_once_found_no_thread(
    coordinator: Coordinator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a forgotten provider, perhaps, of which nothing is left but its sessions and this watch."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    reaper, done = Serial("reaper"), threading.Event()
    with monkeypatch.context() as limit:
        limit.setattr(workers, "start_new_thread", refuse)
        reaper.put(done.set)
    assert reaper.stuck
    monkeypatch.setattr(watching, "reaper", reaper)
    watch = Watch(coordinator.end, heartbeat=None, lease=None)
    watch.add(session)
    assert done.wait(10)
    session.ended = True


def test_the_system_probes_a_silent_network_after_a_minute_at_most() -> None:
    """By the options of the driver's own socket; what the user set to less stays, and a copy alone changes none."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)

        def found() -> list[int]:
            switch = ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            return [switch, *(ours.getsockopt(socket.IPPROTO_TCP, option) for option in options)]

        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        original = found()
        copy = duplicate_socket(ours.fileno())
        assert copy is not None
        assert found() == original
        keep_alive(copy)
        assert found() == [1, 60, 5, 3]
        copy.close()


def test_two_threads_may_ask_at_one_time(session: Session) -> None:
    """The watch asks while a release does."""
    peer = Peer(session.socket)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(lambda: [peer.hung_up() for _ in range(20_000)]) for _ in range(4)]
        assert not any(any(each.result()) for each in asked)


def test_a_session_is_on_the_list_until_its_end_whatever_it_does(coordinator: Coordinator, session: Session) -> None:
    """A1, A2: it held nothing and nothing was due for many rounds; what it was granted then was not watched."""
    watch = Watch(coordinator.end, heartbeat=0.02, lease=None)
    session.locks = 0
    watch.add(session)
    began = session.proof
    until(lambda: clock() - began > 0.2)  # ten rounds and more
    assert watch.sessions == [session]
    assert len(threads()) == 1
    assert session.beats == 0
    session.server.close()
    until(lambda: coordinator.dead == [session])
    until(lambda: not threads())


def test_the_thread_ends_with_the_last_session(coordinator: Coordinator, session: Session) -> None:
    """The next one starts another."""
    watch = Watch(coordinator.end, heartbeat=0.02, lease=None)
    for _ in range(2):
        watch.add(session)
        assert len(threads()) == 1
        watch.remove(session)
        until(lambda: not threads())
    assert coordinator.dead == []


def test_a_thread_that_could_not_be_started_is_started_for_the_next_session(
    coordinator: Coordinator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: one refusal by the system left the provider without a watch indefinitely. Nothing is open unwatched."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = Watch(coordinator.end, heartbeat=None, lease=None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LockConnectionError, match="can't start new thread"):
            watch.add(session)
    assert watch.sessions == []
    watch.add(session)
    session.server.close()
    until(lambda: coordinator.dead == [session])


def test_a_thread_whose_start_was_interrupted_leaves_the_watch_to_the_next_one(
    coordinator: Coordinator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may raise just after the system has started it."""
    start = threading.Thread.start

    def be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    watch = Watch(coordinator.end, heartbeat=0.02, lease=None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            watch.add(session)
    watch.add(session)
    until(lambda: len(threads()) == 1)
    session.server.close()
    until(lambda: coordinator.dead == [session])
    until(lambda: not threads())


def test_the_collector_may_end_sessions_in_the_watchs_own_thread(coordinator: Coordinator, session: Session) -> None:
    """B2: it waited for itself, and the collection never ended."""
    watch, other = Watch(coordinator.end, heartbeat=0.02, lease=None), Session()
    removed = threading.Event()

    class Garbage:
        def __del__(self) -> None:
            watch.remove(other)
            removed.set()

    def hung_up() -> bool:
        with watch._mutex:
            garbage.clear()
        return False

    garbage = [Garbage()]
    session.hung_up = hung_up  # type: ignore[method-assign]
    for each in (session, other):
        watch.add(each)
    until(removed.is_set)
    assert watch.sessions == [session]
    watch.remove(session)
    until(lambda: not threads())
    other.close()


def test_an_answer_that_is_overdue_ends_the_session(coordinator: Coordinator, session: Session) -> None:
    """Also of one that holds nothing; it is watched for as long as an answer is due."""
    watch = Watch(coordinator.end, heartbeat=0.02, lease=None)
    session.locks = 0
    session.due = began = clock() + 0.2
    watch.add(session)
    until(lambda: coordinator.dead == [session])
    assert clock() > began
    assert session.silent
    until(lambda: not threads())


class Clock:
    """A clock that a test sets, and a watch whose rounds it makes, without a thread."""

    def __init__(self, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.watch = watch
        monkeypatch.setattr("dlock_core.sessions.watch.clock", lambda: self.now)
        monkeypatch.setattr(watch, "_start", lambda _: watch._tell_time())
        watch._last_round = self.now

    def leap(self, seconds: float) -> None:
        """Let time pass without a round, and make one."""
        self.now += seconds
        self.watch.round()

    def run(self, seconds: float, tick: float = 1.0) -> None:
        """Let time pass with its rounds."""
        end = self.now + seconds
        while self.now < end:
            self.leap(min(tick, end - self.now))


@pytest.fixture
def timed(coordinator: Coordinator, session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A watch with the default heartbeat and no lease, over a session that was heard of just now."""
    watch = Watch(coordinator.end, heartbeat=30, lease=None)
    clock = Clock(watch, monkeypatch)
    session.proof = clock.now
    watch.add(session)
    yield clock
    watch.remove(session)


def test_silence_brings_a_heartbeat_and_an_answer_puts_off_the_next(timed: Clock, session: Session) -> None:
    """Neither before its time, nor while it waits for a lock, which is silence by choice, nor while it is asked."""
    timed.run(29)
    assert session.beats == 0
    timed.run(2)
    assert session.beats == 1
    session.due = timed.watch.time() + PATIENCE
    timed.run(3)
    assert session.beats == 1
    for beats in range(1, 10):
        session.due, session.proof = inf, timed.now
        timed.run(29)
        assert session.beats == beats
        timed.run(2)
        assert session.beats == beats + 1
    session.waiting = True
    timed.run(100)
    assert session.beats == 10


def test_silence_alone_ends_nothing(timed: Clock, coordinator: Coordinator, session: Session) -> None:
    """A3: a process that was frozen, or a laptop that slept, threw away locks that the server still held."""
    timed.leap(45)
    assert session.beats == 1
    timed.leap(3600)
    timed.run(100)
    assert coordinator.dead == []


@pytest.mark.parametrize("in_loop", [False, True], ids=["thread", "loop"])
def test_a_heartbeat_that_is_not_answered_ends_the_session(
    timed: Clock, coordinator: Coordinator, session: Session, in_loop: bool
) -> None:
    """Within a round of its deadline."""
    session.in_loop = in_loop
    session.due = timed.watch.time() + PATIENCE
    while not coordinator.dead:
        timed.run(1)
        while session.loops_calls:
            session.loops_calls.pop()()
    assert PATIENCE < timed.now - session.proof <= PATIENCE + 1
    assert session.silent


@pytest.mark.parametrize("sent_before", [0.01, 0.5, 5, 9.9])
def test_what_was_under_way_when_the_process_froze_is_not_judged_at_the_thaw(
    timed: Clock, coordinator: Coordinator, session: Session, sent_before: float
) -> None:
    """A3: its answer lies there, and its reader needs a moment; one that does not come is noticed all the same."""
    session.due = timed.watch.time() + PATIENCE
    timed.run(sent_before)
    timed.leap(45)
    timed.leap(0.01)  # another session's hang-up brings a round at once
    assert coordinator.dead == []
    timed.run(0.9, tick=0.3)
    assert coordinator.dead == []
    timed.run(PATIENCE + 2)
    assert coordinator.dead == [session]


def test_a_process_whose_every_round_is_late_still_notices_silence(
    timed: Clock, coordinator: Coordinator, session: Session
) -> None:
    """Something in it keeps Python's lock for seconds, time and again: that is no freeze."""
    session.due = timed.watch.time() + PATIENCE
    timed.run(30, tick=3)
    assert coordinator.dead == [session]


def test_an_event_loop_that_is_blocked_loses_nothing(timed: Clock, coordinator: Coordinator, session: Session) -> None:
    """A3: it reads no answer; when it goes on it gets the time to, and the silence that follows is noticed."""
    session.in_loop = True
    session.due = timed.watch.time() + PATIENCE
    timed.run(45)
    assert coordinator.dead == []
    assert len(session.loops_calls) == 1
    session.loops_calls.pop()()
    timed.run(0.9, tick=0.3)
    assert coordinator.dead == []
    for _ in range(3):
        timed.run(1)
        while session.loops_calls:
            session.loops_calls.pop()()
    assert coordinator.dead == [session]


def test_a_lease_that_is_over_ends_the_session_at_the_first_look(
    timed: Clock, coordinator: Coordinator, session: Session
) -> None:
    """However long the process was frozen; one that holds nothing has nothing to lose."""
    session.locks = 0
    session.lease_is_over = True
    timed.leap(45)
    assert coordinator.dead == []
    session.locks = 1
    timed.leap(0.01)
    assert coordinator.dead == [session]
    assert session.silent


def test_a_session_of_a_closed_loop_is_dead(coordinator: Coordinator, session: Session) -> None:
    """Nothing can release its locks."""
    session.loop_closed = True
    watch = Watch(coordinator.end, heartbeat=0.02, lease=None)
    watch.add(session)
    until(lambda: coordinator.dead == [session])
    until(lambda: not threads())


def test_the_watch_keeps_nothing_alive(coordinator: Coordinator) -> None:
    """A provider and its sessions may become garbage while their locks are held."""
    watch, session = Watch(coordinator.end, heartbeat=0.02, lease=None), Session()
    watch.add(session)
    references = weakref.ref(watch), weakref.ref(session)
    ends = session.socket, session.server
    del watch, session
    gc.collect()
    until(lambda: not threads())
    until(lambda: [reference() for reference in references] == [None, None])
    for end in ends:
        assert end is not None
        end.close()


def test_an_error_of_one_session_does_not_end_the_watch(
    coordinator: Coordinator, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the others are looked at all the same."""
    watch, other = Watch(coordinator.end, heartbeat=0.02, lease=None), Session()
    monkeypatch.setattr(session, "hung_up", lambda: 1 / 0)
    for each in (session, other):
        watch.add(each)
    other.server.close()
    until(lambda: coordinator.dead == [other])
    until(lambda: "ZeroDivisionError" in caplog.text)  # it may look at the other first
    watch.remove(session)
    other.close()


def test_a_hang_up_is_seen_under_gevent() -> None:
    """Its own poll knows nothing of hang-ups: a lock would be handed on over a dead session."""
    program = (
        "import gevent.monkey; gevent.monkey.patch_all()\n"
        "import socket\n"
        "from dlock_core.sessions.sockets import Peer\n"
        "ours, server = socket.socketpair()\n"
        "peer = Peer(ours)\n"
        "before = peer.hung_up()\n"
        "server.close()\n"
        "print(before, peer.hung_up())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
