"""A program that cancels tasks again and again: waits, openings of sessions, or inspections; it says how many.

A driver that is closed under its own statement, or cancelled while it is closed, crashes the process.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core import AsyncLockProvider, LockProvider
from dlock_core.errors import NotPermittedError

AT_ONCE = 10
LONGEST, LONGEST_WAIT = 0.5, 0.2
CHANCE = random.Random(7)


class Database:
    """A provider, and one way to use it whatever its driver is."""

    def __init__(self, url: str) -> None:
        if sa.make_url(url).get_dialect().is_async:
            self.provider: Any = AsyncLockProvider(create_async_engine(url))
            self.lock = self.provider.lock
        else:
            self.provider = LockProvider(url)
            self.lock = self.provider.alock

    async def close(self) -> None:
        """End its sessions."""
        closing = self.provider.close()
        if closing is not None:
            await closing


async def cancelled(work: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Cancel work that has not ended after so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work()


async def wait(url: str, count: int) -> None:
    """Cancel waits, on sessions that are at hand and on new ones."""
    waiting, holding = Database(url), Database(url)
    async with holding.lock("k"):
        for _ in range(count // AT_ONCE):
            waits = (cancelled(waiting.lock("k").acquire, CHANCE.uniform(0, LONGEST_WAIT)) for _ in range(AT_ONCE))
            await asyncio.gather(*waits)
    async with waiting.lock("k", timeout=10):
        pass
    await waiting.close()
    await holding.close()


async def open_sessions(url: str) -> None:
    """Cancel openings; the provider is closed while they are under way, or the loop ends, which cancels the rest."""
    database = Database(url)

    async def take(key: int) -> None:
        async with database.lock(key):
            pass

    takings = ((lambda key=key: take(key)) for key in range(AT_ONCE))
    await asyncio.gather(*(cancelled(taking, CHANCE.uniform(0, LONGEST)) for taking in takings))
    if CHANCE.random() < 0.5:
        await database.close()


async def inspect(url: str) -> None:
    """Cancel questions for locks; a stand-in has no answer."""
    database = Database(url)

    async def ask() -> None:
        with suppress(NotPermittedError):
            await database.provider.inspect()

    await asyncio.gather(*(cancelled(ask, CHANCE.uniform(0, LONGEST)) for _ in range(AT_ONCE)))
    await database.close()


if __name__ == "__main__":
    _, url, what, text = sys.argv
    count = int(text)
    if what == "waits":
        asyncio.run(wait(url, count))
    else:
        for _round in range(count // AT_ONCE):
            asyncio.run({"openings": open_sessions, "inspections": inspect}[what](url))
    print(count)
