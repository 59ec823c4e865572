"""The watch and what it looks at, with real sockets and no server."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest

from dlock_core.sockets import Peer, duplicate_socket, hang_ups
from dlock_core.watch import Watch, clock

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
        self.silent = False
        self.watched = self.ended = False
        self.loop_closed = self.waiting = False
        self.beats = 0

    def hung_up(self) -> bool:
        return self._peer.hung_up()

    def stranded(self) -> bool:
        return self.loop_closed

    def waits(self) -> bool:
        return self.waiting

    def beat(self) -> None:
        self.beats += 1

    def close(self) -> None:
        assert self.socket is not None
        self.socket.close()
        self.server.close()


class Manager:
    """Is told."""

    def __init__(self) -> None:
        self.dead: list[object] = []

    def end(self, session: object) -> None:
        self.dead.append(session)


@pytest.fixture
def manager() -> Manager:
    """Who is told of dead sessions."""
    return Manager()


@pytest.fixture
def session() -> Iterator[Session]:
    """A session that holds a lock."""
    session = Session()
    yield session
    session.close()


def threads() -> list[str]:
    """Return the names of the watches' threads."""
    return [thread.name for thread in threading.enumerate() if thread.name == "dlock-watch"]


def test_a_hang_up_is_told_at_once_and_once(manager: Manager, session: Session) -> None:
    """Data before it is no matter: nobody reads it here."""
    watch = Watch(manager.end, heartbeat=None, lease=None)
    watch.add(session)
    session.server.sendall(b"a notice")
    session.server.close()
    until(lambda: manager.dead == [session])
    until(lambda: not threads())
    assert manager.dead == [session]
    assert not session.watched


class Driver:
    """A driver's connection, as far as its socket goes."""

    def __init__(self, connection: socket.socket) -> None:
        self.fileno = connection.fileno


def test_the_system_probes_a_silent_network_after_a_minute_at_most() -> None:
    """By the options of the driver's own socket; what the user set to less stays."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        copy = duplicate_socket(Driver(ours))
        assert copy is not None
        copy.close()
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [60, 5, 3]


def test_two_threads_may_ask_at_one_time(session: Session) -> None:
    """The watch asks while a release does."""
    peer = Peer(session.socket)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(lambda: [peer.hung_up() for _ in range(20_000)]) for _ in range(4)]
        assert not any(any(each.result()) for each in asked)


def test_a_session_that_holds_nothing_is_let_go(manager: Manager, session: Session) -> None:
    """And the thread ends with the last one; the next lock starts another."""
    watch = Watch(manager.end, heartbeat=0.02, lease=None)
    watch.add(session)
    session.locks = 0
    until(lambda: not session.watched)
    until(lambda: not threads())
    session.locks = 1
    watch.add(session)
    assert session.watched
    assert len(threads()) == 1
    watch.remove(session)
    until(lambda: not threads())
    assert manager.dead == []


def test_an_answer_that_is_overdue_ends_the_session(manager: Manager, session: Session) -> None:
    """Also of one that holds nothing; it is watched for as long as an answer is due."""
    watch = Watch(manager.end, heartbeat=0.02, lease=None)
    session.locks = 0
    session.due = began = clock() + 0.2
    watch.add(session)
    until(lambda: manager.dead == [session])
    assert clock() > began
    assert session.silent
    until(lambda: not threads())


def test_silence_brings_a_heartbeat_and_then_the_end(manager: Manager, session: Session) -> None:
    """Neither before its time, nor while it waits for a lock, which is silence by choice."""
    watch = Watch(manager.end, heartbeat=0.05, lease=None)
    session.waiting = True
    watch.add(session)
    began = clock()
    until(lambda: clock() - began > 0.15)
    assert (session.beats, manager.dead) == (0, [])
    session.proof = clock()
    session.waiting = False
    until(lambda: session.beats > 0)
    assert clock() - session.proof >= 0.05
    until(lambda: manager.dead == [session])
    assert clock() - session.proof >= 0.1


def test_an_answer_puts_off_the_end(manager: Manager, session: Session) -> None:
    """However long the lock is held."""
    watch = Watch(manager.end, heartbeat=0.02, lease=None)
    watch.add(session)
    for _ in range(10):
        beats = session.beats
        until(lambda: session.beats > beats)  # noqa: B023
        session.proof = clock()
    assert manager.dead == []
    watch.remove(session)


def test_a_session_of_a_closed_loop_is_dead(manager: Manager, session: Session) -> None:
    """Nobody can release its locks."""
    session.loop_closed = True
    Watch(manager.end, heartbeat=0.02, lease=None).add(session)
    until(lambda: manager.dead == [session] or not threads())


def test_the_watch_keeps_nothing_alive(manager: Manager) -> None:
    """A provider and its sessions may become garbage while their locks are held."""
    watch, session = Watch(manager.end, heartbeat=0.02, lease=None), Session()
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
    manager: Manager, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the others are looked at all the same."""
    watch, other = Watch(manager.end, heartbeat=0.02, lease=None), Session()
    monkeypatch.setattr(session, "hung_up", lambda: 1 / 0)
    for each in (session, other):
        watch.add(each)
    other.server.close()
    until(lambda: manager.dead == [other])
    until(lambda: "ZeroDivisionError" in caplog.text)  # it may look at the other first
    watch.remove(session)
    other.close()


def test_a_socket_that_never_got_in_can_be_removed(session: Session) -> None:
    """A session ends the same way, however far it came."""
    assert session.socket is not None
    waiting, descriptor = hang_ups(), session.socket.fileno()
    waiting.remove(descriptor)
    waiting.add(descriptor)
    assert waiting.wait(0) == []
    session.server.close()
    assert waiting.wait(5) == [descriptor]
    waiting.remove(descriptor)
    waiting.close()


def test_a_hang_up_is_seen_under_gevent() -> None:
    """Its own poll knows nothing of hang-ups: a lock would be handed on over a dead session."""
    program = (
        "import gevent.monkey; gevent.monkey.patch_all()\n"
        "import socket\n"
        "from dlock_core.sockets import Peer\n"
        "ours, server = socket.socketpair()\n"
        "peer = Peer(ours)\n"
        "before = peer.hung_up()\n"
        "server.close()\n"
        "print(before, peer.hung_up())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
