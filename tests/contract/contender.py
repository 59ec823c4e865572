"""A process that takes one key again and again, and writes down when it was inside.

The stamps are of the monotonic clock, which all processes of a machine share; each line is one
write to a file opened for appending, so lines of several processes do not mix.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

from dlock_core import AsyncLockProvider, LockProvider

LONGEST = 120.0


class Diary:
    """The file where all contenders write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._end = Path(f"{path}.end")
        self._last = time.monotonic() + LONGEST

    @property
    def goes_on(self) -> bool:
        """Whether it has not been ended yet; without a test there is none."""
        return time.monotonic() < self._last and not self._end.exists()

    def note(self, event: str) -> None:
        """Write one line at once."""
        os.write(self._file, f"{event} {os.getpid()} {time.monotonic():.9f}\n".encode())


def contend(url: str, key: str, diary: Diary) -> None:
    """Work in turns until the end."""
    with LockProvider(url) as locks:
        while diary.goes_on:
            with locks.lock(key, timeout=30):
                diary.note("enter")
                time.sleep(random.uniform(0, 0.01))
                diary.note("leave")


async def acontend(url: str, key: str, diary: Diary) -> None:
    """Do the same over an async driver."""
    async with AsyncLockProvider(url) as locks:
        while diary.goes_on:
            async with locks.lock(key, timeout=30):
                diary.note("enter")
                await asyncio.sleep(random.uniform(0, 0.01))
                diary.note("leave")


async def alcontend(url: str, key: str, diary: Diary) -> None:
    """Do the same by `alock` over a sync driver."""
    with LockProvider(url) as locks:
        while diary.goes_on:
            async with locks.alock(key, timeout=30):
                diary.note("enter")
                await asyncio.sleep(random.uniform(0, 0.01))
                diary.note("leave")


def main(api: str, url: str, key: str, path: str) -> None:
    """Contend in the way of an api."""
    diary = Diary(path)
    match api:
        case "sync":
            contend(url, key, diary)
        case "async":
            asyncio.run(acontend(url, key, diary))
        case _:
            asyncio.run(alcontend(url, key, diary))
