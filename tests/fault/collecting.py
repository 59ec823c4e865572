"""A program that drops providers, and lets the garbage collector find each at another moment.

Run with: url, and "moments" of the watch, "allocations" or "async". It says what it found, and waits, so that the
server can be asked what is left.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import sys
import threading
import time
import weakref
from types import FrameType
from typing import Any

from sqlalchemy.util import greenlet_spawn

from dlock_core import AsyncLockProvider, LockProvider
from dlock_core.sessions import watch

# More than there are calls in one round of the watch.
MOMENTS = 60
PATIENCE = 10.0
# Threads that drop providers, how many each, and the seconds for all.
THREADS, DROPPED, WHOLE = 3, 4, 60.0


class Circle:
    """Something that only the collector can free."""

    def __init__(self, *things: object) -> None:
        self.itself = self
        self.things = things


def collects() -> bool:
    """Tell whether a collection still frees a circle."""
    seen = weakref.ref(Circle())
    gc.collect()
    return seen() is None


class Striker:
    """Collects garbage in a watch's thread, at its n-th call from now on, once."""

    def __init__(self) -> None:
        self._left = 0
        self.struck = threading.Event()

    def arm(self, moment: int) -> None:
        self.struck.clear()
        self._left = moment

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._left and event.endswith("call") and threading.current_thread().name == "dlock-watch":
            self._left -= 1
            if not self._left:
                gc.collect()
                self.struck.set()


def drop_some(url: str) -> str:
    """Drop a provider at each moment of its watch; tell of the first one that stopped something."""
    watch.TICK = 0.01
    striker = Striker()
    threading.setprofile(striker)
    for moment in range(1, MOMENTS):
        locks = LockProvider(url)
        lock = locks.lock("held", timeout=10)
        lock.acquire()
        Circle(locks, lock)
        del locks, lock
        striker.arm(moment)
        if not striker.struck.wait(PATIENCE):
            return f"the watch hangs at moment {moment}"
        if not collects():
            return f"collects no more after moment {moment}"
    return "well"


def drop_at_every_allocation(url: str) -> str:
    """Drop providers in several threads while each new object makes the collector run."""
    failures: list[BaseException] = []

    def use_and_drop() -> None:
        try:
            for number in range(DROPPED):
                locks = LockProvider(url)
                lock = locks.lock("contended", timeout=30)
                lock.acquire()
                other = locks.lock(f"kept {threading.get_ident()} {number}")
                other.acquire()
                lock.release()
                Circle(locks, other)
                del locks, lock, other
        except BaseException as error:
            failures.append(error)

    watch.TICK = 0.01
    gc.set_threshold(1, 1, 1)
    gc.enable()
    threads = [threading.Thread(target=use_and_drop, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WHOLE)
    if any(thread.is_alive() for thread in threads):
        return "a thread hangs"
    return repr(failures) if failures else "well"


async def drop_some_async(url: str) -> str:
    """Let the collector strike in one of SQLAlchemy's greenlets, and look whether other tasks run meanwhile."""
    collecting = False
    found = "well"

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal collecting
        collecting = phase == "start"

    async def look() -> None:
        nonlocal found
        while True:
            if collecting:
                found = "a task runs in the midst of a collection"
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    for _ in range(3):
        locks = AsyncLockProvider(url)
        async with locks.lock("released", timeout=10):
            pass
        del locks
    gc.callbacks.append(note)
    await greenlet_spawn(gc.collect)
    gc.callbacks.remove(note)
    looking.cancel()
    await asyncio.sleep(0.5)  # the loop ends the sessions
    return found


def collect_on() -> None:
    """Find what becomes garbage only after a release, as a program does that goes on."""
    while True:
        gc.collect()
        time.sleep(0.1)


def main(url: str, how: str) -> None:
    """Drop, be struck, and report."""
    faulthandler.dump_traceback_later(80, exit=True)
    gc.disable()
    match how:
        case "async":
            found = asyncio.run(drop_some_async(url))
        case "allocations":
            found = drop_at_every_allocation(url)
        case _:
            found = drop_some(url)
    print(found if collects() else f"{found}, collects no more", flush=True)
    threading.Thread(target=collect_on, daemon=True).start()
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
