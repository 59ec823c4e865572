"""Counts connections where a contender's locks are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .contenders import ASYNC, SYNC

if TYPE_CHECKING:
    from .places import Place

__all__ = ["Observer"]

PAUSE = 0.2
MOST = 40


class Observer:
    """The server's own count: the database's, or Redis' for locks in Redis."""

    def __init__(self, place: Place, contender: str) -> None:
        self._place = place
        kind = next(kind for kind in (*SYNC, *ASYNC) if kind.name == contender)
        self._redis = place.address.redis if kind.needs_redis else None

    def connections(self) -> int:
        """Count now."""
        if self._redis is None:
            return self._place.connections()
        import redis  # here, since a run may do without it

        with redis.Redis.from_url(self._redis) as client:
            return len(client.client_list()) - 1

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
