"""A TCP proxy in front of a server, for the ways in which a network fails."""

from __future__ import annotations

import queue
import selectors
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .base import Addressed

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 65536
# Close with RST, and throw away what was not sent yet.
ABORT = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Side:
    """One of the two sockets of a connection, and what is still to be sent to it."""

    socket: socket.socket
    pending: bytes = b""
    ended: bool = False  # it will send no more
    peer: _Side | None = None
    left: int | None = None  # so many more pieces of it are forwarded

    def other(self) -> _Side:
        assert self.peer is not None
        return self.peer

    def wishes(self) -> int:
        """Return the selectors events to wait for; a slow receiver holds up its sender."""
        read = 0 if self.ended or self.other().pending or self.left == 0 else selectors.EVENT_READ
        return read | (selectors.EVENT_WRITE if self.pending else 0)


class Proxy(Addressed):
    """Forward connections to a server until asked to fail; use it as a context manager.

    One thread does all the work on the sockets; the methods hand it their calls and wait until it is done.
    """

    def __init__(self, server: Addressed) -> None:
        """Listen on a free port, at once."""
        self._target = (server.host, server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(server.address.set(host="127.0.0.1", port=self._listener.getsockname()[1]))
        self._sides: set[_Side] = set()
        self._black_hole = False
        self._pieces: int | None = None
        self._closing = False
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._wake, self._bell = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """Return how many connections are open through the proxy."""
        return len(self._sides) // 2

    def cut(self) -> None:
        """Forward nothing from now on, in either direction, but keep the connections open.

        As when packets are lost: what is sent meanwhile arrives after `restore`. New connections are taken, as the
        kernel does this for any listener, but hear nothing.
        """
        self._do(lambda: self._set_black_hole(to=True))

    def hush(self, pieces: int) -> None:
        """Forward only so many pieces of what the server sends on each new connection, until `restore`."""
        self._do(lambda: setattr(self, "_pieces", pieces))

    def restore(self) -> None:
        """Forward again."""
        self._do(lambda: self._set_black_hole(to=False))

    def drop(self) -> None:
        """Close all open connections with RST on both sides; new ones are welcome."""
        self._do(self._abort_all)

    def close(self) -> None:
        """Drop the connections and stop listening."""
        if self._thread.is_alive():
            self._do(self._end)
            self._thread.join()

    def __enter__(self) -> Self:
        """Return the proxy, which listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the proxy."""
        self.close()

    def _do(self, call: Callable[[], None]) -> None:
        """Have the thread do something, and wait until it is done."""
        done: Future[None] = Future()
        self._calls.put((call, done))
        self._wake.send(b"!")
        done.result(timeout=10)

    # From here on everything runs in the thread.

    def _work(self) -> None:
        while not self._closing:
            for key, events in self._selector.select():
                if key.fileobj is self._bell:
                    self._run_calls()
                elif self._closing or self._black_hole:
                    break  # a call of this round changed what is to be done
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._sides:
                    self._transfer(key.data, events)
        self._selector.close()
        for sock in (self._listener, self._bell, self._wake):
            sock.close()

    def _run_calls(self) -> None:
        self._bell.recv(CHUNK)
        while not self._calls.empty():
            call, done = self._calls.get()
            call()
            done.set_result(None)

    def _set_black_hole(self, *, to: bool) -> None:
        self._black_hole = to
        self._watch(self._listener, 0 if to else selectors.EVENT_READ)
        if not to:
            self._pieces = None
        for side in self._sides:
            side.left = side.left if to else None
            self._update(side)

    def _abort_all(self) -> None:
        while self._sides:
            self._abort(next(iter(self._sides)))

    def _end(self) -> None:
        self._abort_all()
        self._closing = True

    def _accept(self) -> None:
        client = _Side(self._listener.accept()[0])
        try:
            server = _Side(socket.create_connection(self._target, timeout=10))
        except OSError:
            _reset(client.socket)
            return
        client.peer, server.peer = server, client
        server.left = self._pieces
        for side in (client, server):
            side.socket.settimeout(0)
            side.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sides.add(side)
            self._update(side)

    def _transfer(self, side: _Side, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(side)
            if events & selectors.EVENT_READ:
                self._receive(side)
        except BlockingIOError:
            return
        except OSError:
            self._abort(side)
            return
        if side.ended and side.other().ended and not side.pending and not side.other().pending:
            self._forget(side, socket.socket.close)
        else:
            self._update(side)
            self._update(side.other())

    def _receive(self, side: _Side) -> None:
        data = side.socket.recv(CHUNK)
        side.ended = not data
        side.other().pending += data
        if side.left is not None:
            side.left -= 1
        self._send(side.other())

    def _send(self, side: _Side) -> None:
        if side.pending:
            with suppress(BlockingIOError):
                side.pending = side.pending[side.socket.send(side.pending) :]
        if side.other().ended and not side.pending:
            side.socket.shutdown(socket.SHUT_WR)

    def _abort(self, side: _Side) -> None:
        self._forget(side, _reset)

    def _forget(self, side: _Side, close: Callable[[socket.socket], None]) -> None:
        for each in (side, side.other()):
            self._sides.discard(each)
            self._watch(each.socket, 0)
            close(each.socket)

    def _update(self, side: _Side) -> None:
        self._watch(side.socket, 0 if self._black_hole else side.wishes(), side)

    def _watch(self, sock: socket.socket, events: int, data: _Side | None = None) -> None:
        known = sock in self._selector.get_map()
        if known and not events:
            self._selector.unregister(sock)
        elif known:
            self._selector.modify(sock, events, data)
        elif events:
            self._selector.register(sock, events, data)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    sock.close()
