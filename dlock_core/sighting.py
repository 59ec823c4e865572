"""The sockets of drivers that show none: pymssql, pyodbc, aioodbc, oracledb.

Without its socket a session cannot be watched, interrupted, or given up in a forked child. The socket
is whatever TCP connection this process opened while the driver connected; when that is not exactly
one, because other threads opened some too, it stays unknown. Linux only.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Sighting", "same_file"]

DESCRIPTORS = Path("/proc/self/fd")
PATIENCE = 5.0


class Sighting:
    """Looks what opens inside its `with`; our own threads take turns, tasks cannot."""

    def __init__(self, *, in_turn: bool) -> None:
        self._in_turn = in_turn
        self._before: set[tuple[int, str]] = set()

    def __enter__(self) -> Self:
        self._in_turn = self._in_turn and _turn.acquire(timeout=PATIENCE)
        self._before = _sockets()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._in_turn:
            _turn.release()

    def found(self) -> int | None:
        """Return the descriptor of the one TCP connection that has been opened."""
        opened = [number for number, _ in _sockets() - self._before if _is_tcp(number)]
        return opened[0] if len(opened) == 1 else None


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


def _is_tcp(number: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(number)) as handle:
            handle.getpeername()
            return handle.family in (socket.AF_INET, socket.AF_INET6) and handle.type == socket.SOCK_STREAM
    except OSError:
        return False


def same_file(number: int | None, handle: socket.socket) -> bool:
    """Tell whether a descriptor that we saw once still is the socket: the driver may have closed it."""
    try:
        return number is not None and os.path.sameopenfile(number, handle.fileno())
    except OSError:
        return False


_turn = threading.Lock()


def _after_fork() -> None:
    global _turn  # noqa: PLW0603 - another thread of the parent may have held it
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
