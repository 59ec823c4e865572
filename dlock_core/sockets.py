"""The socket under a driver connection: a second handle of it, and whether its peer has hung up.

Only the hang-up is asked for, never data: a session that answers, or is told of a NOTIFY, is alive.
It shows under TLS as well, and beside any event loop, because nothing is read.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from contextlib import suppress
from typing import Any, Protocol

__all__ = ["HangUps", "Peer", "duplicate_socket", "hang_ups", "socket_number"]

# Seconds of silence before the first probe, seconds between two, and how many may stay unanswered.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def duplicate_socket(driver_connection: Any, seen: int | None = None) -> socket.socket | None:
    """Return a second handle of the session's socket, None where neither the driver nor a look shows it."""
    descriptor = socket_number(driver_connection)
    descriptor = seen if descriptor is None else descriptor
    if descriptor is None:
        return None
    connection = socket.socket(fileno=os.dup(descriptor))
    _keep_alive(connection)
    return connection


def _keep_alive(connection: socket.socket) -> None:
    """Let the system probe a silent network, no later than PostgreSQL does for our sessions from its side.

    It keeps a firewall from forgetting an idle session, and ends a wait without a timeout when the server's machine is
    gone: the options belong to the socket, whoever has a handle of it.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, most in KEEPALIVE.items():
        option = getattr(socket, name, None)
        if option is not None and connection.getsockopt(socket.IPPROTO_TCP, option) > most:
            connection.setsockopt(socket.IPPROTO_TCP, option, most)


def socket_number(driver_connection: Any) -> int | None:
    """Return the descriptor of a driver connection's socket, None where the driver shows none."""
    if hasattr(driver_connection, "fileno"):  # psycopg, psycopg2, mysqlclient
        return int(driver_connection.fileno())
    # The other drivers keep theirs private, and there is no other way to it.
    stream = getattr(driver_connection, "_transport", None)  # asyncpg, asyncmy
    stream = stream or getattr(driver_connection, "_writer", None)  # aiomysql
    found = getattr(driver_connection, "_sock", None)  # PyMySQL
    found = stream.get_extra_info("socket") if stream is not None else found
    return None if found is None else int(found.fileno())


class Peer:
    """Tells in no time whether the other end of a socket has closed."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._mutex = threading.Lock()  # two threads may not use one poll at a time
        self._poll: select.poll | None = None
        if connection is not None and hasattr(select, "POLLRDHUP"):
            self._poll = _new_poll()
            self._poll.register(connection, select.POLLRDHUP)

    @property
    def in_reach(self) -> bool:
        """Whether a hang-up can be seen here."""
        return self._poll is not None

    def hung_up(self) -> bool:
        """Tell whether the peer has closed; False where that cannot be seen."""
        if self._poll is None:
            return False
        with self._mutex:
            return bool(self._poll.poll(0))


def _new_poll() -> select.poll:
    """Return the kernel's own: gevent's does not know POLLRDHUP, and would never see a hang-up."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("select"):
        return monkey.get_original("select", "poll")()  # type: ignore[no-any-return]
    return select.poll()


class HangUps(Protocol):
    """Many sockets, of which some hang up."""

    def add(self, descriptor: int) -> None:
        """Watch a socket."""
        ...

    def remove(self, descriptor: int) -> None:
        """Watch it no more; to be called before it is closed."""
        ...

    def wait(self, seconds: float) -> list[int]:
        """Return the sockets that have hung up, at the latest when time is over."""
        ...

    def close(self) -> None:
        """Give up, in a forked child too."""
        ...


class _Epoll:
    """Linux. A socket hangs up once: each is told of once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def add(self, descriptor: int) -> None:
        self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def remove(self, descriptor: int) -> None:
        with suppress(OSError):  # it never got in
            self._epoll.unregister(descriptor)

    def wait(self, seconds: float) -> list[int]:
        return [descriptor for descriptor, _ in self._epoll.poll(seconds)]

    def close(self) -> None:
        self._epoll.close()


class _Kqueue:
    """macOS and BSD; data is not asked for: its threshold is never reached."""

    def __init__(self) -> None:
        self._kqueue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]

    def _change(self, descriptor: int, flags: int) -> None:
        event = select.kevent(  # type: ignore[attr-defined,unused-ignore]
            descriptor,
            select.KQ_FILTER_READ,  # type: ignore[attr-defined,unused-ignore]
            flags,
            select.KQ_NOTE_LOWAT,  # type: ignore[attr-defined,unused-ignore]
            sys.maxsize,
        )
        self._kqueue.control([event], 0)

    def add(self, descriptor: int) -> None:
        self._change(descriptor, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)  # type: ignore[attr-defined,unused-ignore]

    def remove(self, descriptor: int) -> None:
        with suppress(OSError):  # it has hung up, or never got in
            self._change(descriptor, select.KQ_EV_DELETE)  # type: ignore[attr-defined,unused-ignore]

    def wait(self, seconds: float) -> list[int]:
        return [event.ident for event in self._kqueue.control(None, 64, seconds)]

    def close(self) -> None:
        self._kqueue.close()


class _Nothing:
    """Elsewhere, and under gevent, which must not be kept waiting: the watch looks at each session now and then."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def add(self, descriptor: int) -> None:
        pass

    def remove(self, descriptor: int) -> None:
        pass

    def wait(self, seconds: float) -> list[int]:
        self._closed.wait(seconds)
        return []

    def close(self) -> None:
        self._closed.set()


def hang_ups() -> HangUps:
    """Return what this platform has for it."""
    if hasattr(select, "epoll"):
        return _Epoll()
    return _Kqueue() if hasattr(select, "kqueue") else _Nothing()
