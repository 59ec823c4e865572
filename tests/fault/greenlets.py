"""A program of gevent: greenlets that hold locks, and others that a Timeout or a kill calls away at any statement.

Run with: url, whether sessions are shared. It tells how many locks it holds, and ends when its input does.
"""

from __future__ import annotations

from gevent import monkey  # type: ignore[import-untyped]

monkey.patch_all()

# ruff: noqa: E402 - what follows must find everything patched
import random
import sys
from typing import Any

import gevent

from dlock_core import LockProvider

LOCKS = 50
USES = 60


def _until_reported() -> None:
    """Wait in a thread, so that other greenlets go on."""
    gevent.get_hub().threadpool.apply(sys.stdin.readline)


def _leave_in_the_midst(locks: Any, chance: random.Random) -> None:
    """Use locks, and be called away at random moments: while trying, waiting and releasing."""
    for number in range(USES):
        key = "wanted" if number % 3 == 0 else ("free", number)
        with gevent.Timeout(chance.uniform(0.0001, 0.004), False), locks.lock(key):
            gevent.sleep(chance.uniform(0, 0.001))


def _wait(locks: Any) -> None:
    with locks.lock("wanted"):
        raise AssertionError("the test holds it")


def _owner(locks: Any) -> None:
    """Hold a lock, and lose the patience to wait for another."""
    with locks.lock("mine") as mine:
        with gevent.Timeout(0.3, False):
            _wait(locks)
        assert mine.held, "its owner's wait cost it"
        print("kept", flush=True)
        _until_reported()


def main(url: str, share_sessions: str) -> None:
    """Hold locks while others are called away."""
    locks = LockProvider(url, share_sessions=share_sessions == "shared")
    if share_sessions != "shared":
        gevent.spawn(_owner, locks).get()
        locks.close()
        return
    held = [locks.lock(("held", number)) for number in range(LOCKS)]
    gevent.joinall([gevent.spawn(lock.acquire) for lock in held], raise_error=True)
    chance = random.Random(3)
    waiters = [gevent.spawn(_wait, locks) for _ in range(3)]
    crowd = [gevent.spawn(_leave_in_the_midst, locks, chance) for _ in range(6)]
    gevent.joinall(crowd, raise_error=True)
    gevent.killall(waiters)
    print("held", sum(lock.held for lock in held), flush=True)
    _until_reported()
    for lock in held:
        lock.release()
    locks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
