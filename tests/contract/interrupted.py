"""A program whose main thread waits for a held lock until a signal calls it away, and then goes on.

Run with: url, what a signal does. It tells on its output what happens, with stamps of the monotonic
clock, which all processes of a machine share.
"""

from __future__ import annotations

import signal
import sys
import time
from functools import partial

from dlock_core import LockProvider


class CalledAwayError(Exception):
    """What this program's own signal handler raises, as the time limits of task queues do."""


RAISED = {"raises": CalledAwayError, "times-out": TimeoutError}


def say(event: str) -> None:
    """Write one line at once."""
    print(event, f"{time.monotonic():.9f}", flush=True)


def main(url: str, reaction: str) -> None:
    """Hold a lock, wait for another, be called away, and take locks again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from its background jobs
    if reaction == "returns":
        signal.signal(signal.SIGINT, lambda *_: say("handled"))
    elif reaction in RAISED:
        signal.signal(signal.SIGINT, partial(_raise, RAISED[reaction]))
    locks = LockProvider(url)
    mine = locks.lock("mine")
    mine.acquire(timeout=5)
    try:
        say("asks")
        with locks.lock("k"):
            say("holds")
    except (KeyboardInterrupt, CalledAwayError, TimeoutError) as error:
        say(type(error).__name__)
        if reaction == "dies":
            raise
    sys.stdin.readline()
    with locks.lock("another", timeout=5), locks.lock("k", timeout=5):
        say("went on")
    mine.release()
    locks.close()


def _raise(error: type[Exception], *_: object) -> None:
    raise error


if __name__ == "__main__":
    main(*sys.argv[1:])
