"""Counts a contender's connections where its locks are."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from .contenders import ASYNC, SYNC

if TYPE_CHECKING:
    from .crew import Crew
    from .places import Place

__all__ = ["Observer"]

PAUSE = 0.2
MOST = 40


class Observer:
    """The server's own count: the database's, or Redis' for locks in Redis.

    Only what the crew's processes opened counts: others may come and go on a server meanwhile.
    """

    def __init__(self, place: Place, crew: Crew) -> None:
        self._place = place
        self._crew = crew
        kind = next(kind for kind in (*SYNC, *ASYNC) if kind.name == crew.name)
        self._redis = place.address.redis if kind.needs_redis else None

    def connections(self) -> int:
        """Count now."""
        return len(self._seen_by_server() & self._opened_by_crew())

    def _opened_by_crew(self) -> set[int]:
        ports: set[int] = set()
        for pid in self._crew.pids:
            with suppress(psutil.NoSuchProcess):
                ports.update(at.laddr.port for at in psutil.Process(pid).net_connections("tcp"))
        return ports

    def _seen_by_server(self) -> set[int]:
        if self._redis is None:
            return self._place.client_ports()
        import redis  # here, since a run may do without it

        with redis.Redis.from_url(self._redis) as client:
            return {int(of["addr"].rpartition(":")[2]) for of in client.client_list()}

    def settled(self) -> int:
        """Count until the number stays the same."""
        last = -1
        for _ in range(MOST):
            now = self.connections()
            if now == last:
                return now
            last = now
            time.sleep(PAUSE)
        return last
