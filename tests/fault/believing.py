"""A program that holds a lock, is frozen or blocks its event loop, and tells what it believes.

Run with: url, and the provider's options as JSON. It does what the lines of its input say, and answers each.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Any

from dlock_core import AsyncLockProvider, LockError, LockProvider


class Believer:
    """Holds the lock, in a thread or in a task."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._locks: Any
        if "async" in url or "aio" in url:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
            self._locks = self._run(lambda: AsyncLockProvider(url.replace("_async", ""), **options))
        else:
            self._locks = LockProvider(url, **options)
        self.lock = self._locks.lock("k")
        assert self._run(self.lock.acquire)

    def _run(self, step: Callable[[], Any]) -> Any:
        if self._loop is None:
            return step()

        async def take() -> Any:
            result = step()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(take(), self._loop).result()

    def believes(self) -> str:
        """Say what the lock is now."""
        return f"{'held' if self.lock.held else 'not-held'} {'lost' if self.lock.lost else 'not-lost'}"

    def watch(self, seconds: float) -> str:
        """Say whether it believes in the lock for so long."""
        end = time.monotonic() + seconds
        while self.lock.held and time.monotonic() < end:
            time.sleep(0.01)
        return self.believes()

    def asked(self) -> str:
        """Wait until a heartbeat is under way."""
        session = self._locks._coordinator.entries.held()[0].session
        while session.due == inf:
            time.sleep(0.001)
        return "asked"

    def block(self, seconds: float) -> str:
        """Block the event loop."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(time.sleep, seconds)
        return "blocks"

    def release(self) -> str:
        """Release the lock."""
        try:
            self._run(self.lock.release)
        except LockError as error:
            return type(error).__name__
        return "released"


def main(url: str, options: str) -> None:
    """Hold, and obey the lines on stdin."""
    believer = Believer(url, json.loads(options))
    print("holds", flush=True)
    for line in sys.stdin:
        verb, *seconds = line.split()
        print(getattr(believer, verb)(*map(float, seconds)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
