"""A program that takes a lock, says so and ends in one of many ways, or keeps it indefinitely."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import sys
import threading
import time
from contextlib import suppress

from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core import AsyncLockProvider, LockError, LockProvider


def say(word: str) -> None:
    """Tell the test, and wait for its answer."""
    print(word, flush=True)
    sys.stdin.readline()


def hold_on(locks: LockProvider, holds: threading.Event) -> None:
    """Hold another lock to the end."""
    with locks.lock("threads"):
        holds.set()
        time.sleep(60)


def wait_in_vain(url: str) -> None:
    """Wait for the lock that the main thread holds; its end may be reported before ours."""
    with suppress(LockError):
        LockProvider(url).lock("k").acquire()


def main(url: str, way: str) -> None:
    """End in a way, holding a lock."""
    locks = LockProvider(url)
    lock = locks.lock("k")
    lock.acquire()
    if way == "forgets":
        del lock, locks
        gc.collect()
        say("held")
        return
    say("held")
    match way:
        case "returns":
            return
        case "sys.exit":
            sys.exit(0)
        case "os._exit":
            os._exit(0)
        case "raises":
            raise ZeroDivisionError
        case "releases in atexit":
            atexit.register(lock.release)
        case "takes another in atexit":
            atexit.register(lambda: locks.lock("other", timeout=5).acquire())
        case "with a thread that waits":
            threading.Thread(target=wait_in_vain, args=[url], daemon=True).start()
            time.sleep(0.2)  # a wait of another provider, of which nothing here can be asked
        case "with a thread that holds":
            holds = threading.Event()
            threading.Thread(target=hold_on, args=[locks, holds], daemon=True).start()
            holds.wait(60)


def main_async(url: str, way: str) -> None:
    """The same over an async driver."""
    locks = AsyncLockProvider(create_async_engine(url))
    lock = locks.lock("k")

    async def body() -> None:
        await lock.acquire()
        say("held")
        if way == "raises":
            raise ZeroDivisionError
        if way == "os._exit":
            os._exit(0)
        if way == "sys.exit":
            sys.exit(0)

    asyncio.run(body())


if __name__ == "__main__":
    (main_async if sys.argv[3] == "async" else main)(sys.argv[1], sys.argv[2])
