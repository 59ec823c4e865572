"""The sockets of sessions: whether the other end has hung up, what a descriptor belongs to, what a fork does to it."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "HangUps",
    "Peer",
    "duplicate_socket",
    "finder_of_socket",
    "hang_ups",
    "keep_alive",
    "replace_by_null",
    "same_file",
]

# Seconds of silence before the first probe, seconds between two, and how many may stay unanswered.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def duplicate_socket(descriptor: int | None) -> socket.socket | None:
    """Return a second handle of a session's socket, None where its descriptor is not known."""
    return None if descriptor is None else socket.socket(fileno=os.dup(descriptor))


def keep_alive(connection: socket.socket) -> None:
    """Let the system probe a silent network, no later than PostgreSQL does for our sessions from its side.

    It keeps a firewall from forgetting an idle session, and ends a wait without a timeout when the server's machine is
    gone: the options belong to the socket, whichever handle sets them.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, most in KEEPALIVE.items():
        option = getattr(socket, name, None)
        if option is not None and connection.getsockopt(socket.IPPROTO_TCP, option) > most:
            connection.setsockopt(socket.IPPROTO_TCP, option, most)


class Peer:
    """Tells in no time whether the other end of a socket has closed.

    Linux's poll and the kqueue of macOS and BSD show that, behind unread data too. Elsewhere only that there is
    something to read can be seen: data, or the end.
    """

    def __init__(self, connection: socket.socket | int | None) -> None:
        self._connection = connection
        self.in_reach = connection is not None and (hasattr(select, "POLLRDHUP") or hasattr(select, "kqueue"))
        """Whether a hang-up can be seen here."""

    def hung_up(self) -> bool:
        """Tell whether the peer has closed; False where that cannot be seen."""
        return self.in_reach and self._shows(getattr(select, "POLLRDHUP", None))

    def stirs(self) -> bool:
        """Tell whether something is to be read that may be the end; False where a hang-up can be seen."""
        return not self.in_reach and self._connection is not None and self._shows(select.POLLIN)

    def _shows(self, event: int | None) -> bool:
        """Look for an event of poll, or for the end in a kqueue."""
        try:
            if event is None:
                return _ended_for_kqueue(self._connection)
            poll = _new_poll()
            poll.register(self._connection, event)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # our own handle of it is closed
            return True


def _new_poll() -> Any:
    """Return the kernel's own: gevent's does not know POLLRDHUP, and would never see a hang-up."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("select"):
        return monkey.get_original("select", "poll")()
    return select.poll()


platform: Any = select  # each has its own part of it


def _hang_up_event(connection: Any, flags: int) -> Any:
    """Return the event to ask a kqueue for: no data, since its threshold is never reached."""
    return platform.kevent(connection, platform.KQ_FILTER_READ, flags, platform.KQ_NOTE_LOWAT, sys.maxsize)


def _ended_for_kqueue(connection: Any) -> bool:
    with closing(platform.kqueue()) as queue:
        found = queue.control([_hang_up_event(connection, platform.KQ_EV_ADD)], 1, 0)
        return any(event.flags & platform.KQ_EV_EOF for event in found)


class HangUps:
    """Many sockets, of which some hang up.

    This one sees none: for other platforms and for gevent, which must not be kept waiting. The watch looks at each
    session now and then.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()

    def add(self, descriptor: int) -> None:
        """Watch a socket."""

    def remove(self, descriptor: int) -> None:
        """Watch it no more; to be called before it is closed."""

    def wait(self, seconds: float) -> list[int]:
        """Return the sockets that have hung up, at the latest when time is over."""
        self._closed.wait(seconds)
        return []

    def close(self) -> None:
        """Give up, in a forked child too."""
        self._closed.set()


class _Epoll(HangUps):
    """Linux. A socket hangs up once, and is reported once."""

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


class _Kqueue(HangUps):
    """macOS and BSD."""

    def __init__(self) -> None:
        self._kqueue = platform.kqueue()

    def add(self, descriptor: int) -> None:
        self._kqueue.control([_hang_up_event(descriptor, platform.KQ_EV_ADD | platform.KQ_EV_ONESHOT)], 0)

    def remove(self, descriptor: int) -> None:
        with suppress(OSError):  # it has hung up, or never got in
            self._kqueue.control([_hang_up_event(descriptor, platform.KQ_EV_DELETE)], 0)

    def wait(self, seconds: float) -> list[int]:
        return [event.ident for event in self._kqueue.control(None, 64, seconds)]

    def close(self) -> None:
        self._kqueue.close()


def hang_ups() -> HangUps:
    """Return what this platform has for it."""
    if hasattr(select, "epoll"):
        return _Epoll()
    return _Kqueue() if hasattr(select, "kqueue") else HangUps()


DESCRIPTORS = Path("/proc/self/fd")
PATIENCE = 5.0


@contextmanager
def finder_of_socket(host: str | None, port: int | None, *, in_turn: bool) -> Iterator[Callable[[], int | None]]:
    """Find the one TCP connection to a database that opens inside the `with`: what it yields returns its descriptor.

    Args:
        host: The database's, as the URL says.
        port: Its port; None for nothing to look for.
        in_turn: A thread looks, so that other threads of ours wait, and it may wait for the name service itself. The
            event loop may not.
    """
    if port is None:
        yield lambda: None
        return
    has_turn = in_turn and _turn.acquire(timeout=PATIENCE)
    before = _sockets()

    def found() -> int | None:
        peers = {number: peer for number, _ in _sockets() - before if (peer := _peer(number)) is not None}
        if len(peers) != 1:
            return None
        ((number, (address, its_port)),) = peers.items()
        return number if its_port == port and _is_of_host(address, host, may_resolve=in_turn) else None

    try:
        yield found
    finally:
        if has_turn:
            _turn.release()


def _is_of_host(address: str, host: str | None, *, may_resolve: bool) -> bool:
    if host is None:
        return False
    try:
        found = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=0 if may_resolve else socket.AI_NUMERICHOST
        )
    except OSError:  # a name that leads nowhere, or one that the event loop must not look up
        return not may_resolve
    return address in {_plain(str(name[0])) for *_, name in found}


def _sockets() -> set[tuple[int, str]]:
    """Return the descriptors of all sockets, each with the kernel's name for it."""
    found = set()
    with suppress(OSError):  # not Linux
        for entry in DESCRIPTORS.iterdir():
            with suppress(OSError):  # closed meanwhile
                name = str(entry.readlink())
                if name.startswith("socket:"):
                    found.add((int(entry.name), name))
    return found


def _peer(number: int) -> tuple[str, int] | None:
    """Return address and port of the other end, None unless the descriptor is a TCP connection."""
    try:
        with socket.socket(fileno=os.dup(number)) as handle:
            if handle.family not in (socket.AF_INET, socket.AF_INET6) or handle.type != socket.SOCK_STREAM:
                return None
            address, port = handle.getpeername()[:2]
            return _plain(address), port
    except OSError:
        return None


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")  # IPv4, over an IPv6 socket


def same_file(number: int | None, handle: socket.socket) -> bool:
    """Tell whether a descriptor that we saw once still is the socket: the driver may have closed it."""
    try:
        return number is not None and os.path.sameopenfile(number, handle.fileno())
    except OSError:
        return False


def replace_by_null(handle: socket.socket, number: int | None) -> None:
    """Put the null device in the place of our handle of a socket, and of the driver's if it still is that socket."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (number, handle.fileno()):  # ours last: it is what the other is compared with
        if descriptor is not None and same_file(descriptor, handle):
            os.dup2(null, descriptor, inheritable=False)
    os.close(null)


_turn = threading.Lock()


def _after_fork() -> None:
    global _turn  # noqa: PLW0603 - another thread of the parent may have held it
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
