"""How a hang-up is seen on each platform: what Linux lacks is played for it."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dlock_core.sessions.sockets import Peer, hang_ups

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the other platforms are played with Linux's poll")

POLLRDHUP = getattr(select, "POLLRDHUP", 0)
ADD, DELETE, ONESHOT, EOF = 0x1, 0x2, 0x10, 0x8000
KQUEUE = {
    "KQ_FILTER_READ": -1,
    "KQ_EV_ADD": ADD,
    "KQ_EV_DELETE": DELETE,
    "KQ_EV_ONESHOT": ONESHOT,
    "KQ_EV_EOF": EOF,
    "KQ_NOTE_LOWAT": 1,
}


class Event(NamedTuple):
    """A kevent."""

    ident: Any
    filter: int
    flags: int
    fflags: int
    data: int


class Queue:
    """A kqueue as its manual has it: a hang-up is an event with EV_EOF; data below the threshold is none."""

    opened = 0

    def __init__(self) -> None:
        self._wanted: dict[int, Event] = {}
        Queue.opened += 1

    def control(self, changes: list[Event] | None, most: int, seconds: float | None = None) -> list[Event]:
        for change in changes or ():
            number = change.ident if isinstance(change.ident, int) else change.ident.fileno()
            if number < 0:
                raise ValueError("Invalid file descriptor")
            assert (change.filter, change.fflags, change.data) == (-1, 1, sys.maxsize)
            if change.flags & DELETE:
                if number not in self._wanted:
                    raise FileNotFoundError
                del self._wanted[number]
            else:
                self._wanted[number] = change
        poll = select.poll()
        for number in self._wanted:
            poll.register(number, POLLRDHUP)
        found = [number for number, _ in poll.poll((seconds or 0) * 1000)][:most] if most else []
        events = [Event(number, -1, EOF, 1, 0) for number in found]
        for number in found:
            if self._wanted[number].flags & ONESHOT:
                del self._wanted[number]
        return events

    def close(self) -> None:
        Queue.opened -= 1


def _be_bsd(monkeypatch: pytest.MonkeyPatch) -> None:
    _be_elsewhere(monkeypatch)
    for name, value in KQUEUE.items():
        monkeypatch.setattr(select, name, value, raising=False)
    monkeypatch.setattr(select, "kqueue", Queue, raising=False)
    monkeypatch.setattr(select, "kevent", Event, raising=False)


def _be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "POLLRDHUP")
    monkeypatch.delattr(select, "epoll")


@pytest.fixture(params=["linux", "bsd"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A platform that shows hang-ups."""
    if request.param == "bsd":
        _be_bsd(monkeypatch)
    return str(request.param)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a connection, and the server's."""
    ours, server = socket.socketpair()
    with ours, server:
        yield ours, server


@pytest.mark.usefixtures("platform")
def test_a_hang_up_shows_behind_unread_data(ends: tuple[socket.socket, socket.socket]) -> None:
    """On macOS none was seen at all: a loss was reported after forty seconds. Data alone is none."""
    ours, server = ends
    for peer in (Peer(ours), Peer(ours.fileno())):
        assert peer.in_reach
        assert not peer.hung_up()
    server.sendall(b"a notice")
    assert not peer.hung_up()
    assert not peer.stirs()
    server.close()
    assert peer.hung_up()
    assert not peer.stirs()


def test_nothing_of_a_kqueue_stays_open(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look opens one; of a socket that we have closed it says the same as of one that the server has."""
    _be_bsd(monkeypatch)
    peer = Peer(ends[0])
    assert not peer.hung_up()
    ends[0].close()
    assert peer.hung_up()
    assert Queue.opened == 0


@pytest.mark.usefixtures("platform")
def test_a_hang_up_wakes_the_watch_once(ends: tuple[socket.socket, socket.socket]) -> None:
    """Of data it hears nothing; what hung up or never got in can be removed."""
    ours, server = ends
    waiting, number = hang_ups(), ours.fileno()
    waiting.remove(number)
    waiting.add(number)
    server.sendall(b"a notice")
    assert waiting.wait(0) == []
    server.close()
    assert waiting.wait(5) == [number]
    assert waiting.wait(0) == []
    waiting.remove(number)
    waiting.close()


def test_elsewhere_something_to_read_may_be_the_end(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the session is asked; nothing is taken for a hang-up, and nothing is handed on in memory."""
    _be_elsewhere(monkeypatch)
    ours, server = ends
    peer = Peer(ours)
    assert not peer.in_reach
    assert not peer.stirs()
    server.sendall(b"a notice")
    assert peer.stirs()
    ours.recv(100)
    assert not peer.stirs()
    server.close()
    assert peer.stirs()
    assert not peer.hung_up()


def test_a_socket_out_of_reach_tells_nothing() -> None:
    """Some drivers show none."""
    peer = Peer(None)
    assert not peer.in_reach
    assert not peer.hung_up()
    assert not peer.stirs()
