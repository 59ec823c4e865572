"""A program whose main thread takes locks while a signal handler raises at random moments.

Two threads of its own and a second provider compete with it. At the end it says so, and waits, so that
the server can be asked what it has left there. Run with: url, number of signals, seed.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dlock_core import DeadlockError, LockProvider, LockTimeoutError

KEYS = 2
WITHIN = 0.012
# Python drops what a handler raises inside a destructor: then another signal must come.
AGAIN = 0.2


class CalledAwayError(Exception):
    """What the handler raises."""


def call_away(*_: object) -> None:
    """Handle the signal."""
    raise CalledAwayError


def compete(locks: LockProvider, over: threading.Event) -> None:
    """Take the same locks."""
    number = 0
    while not over.is_set():
        number += 1
        try:
            with locks.lock(number % KEYS, timeout=0.05):
                time.sleep(0.001)
        except LockTimeoutError:
            continue


def use(locks: LockProvider, chance: random.Random) -> None:
    """Take a lock by hand and one by `with`."""
    lock = locks.lock(chance.randrange(KEYS), timeout=chance.choice([None, 0.02, 5]))
    try:
        lock.acquire()
    except DeadlockError:  # what the last signal tore out of our hands is still on its way back
        time.sleep(0.001)
    finally:
        lock.close()
    with suppress(DeadlockError), locks.lock("alone"):
        pass


def be_called_away(
    use: Callable[[], object], signals: int, chance: random.Random, afterwards: Callable[[], object] = int
) -> None:
    """Use locks until so many signals have come, each while a lock is asked for, held or released."""
    seen = 0
    while seen < signals:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, WITHIN), AGAIN)
            while True:
                use()
        except CalledAwayError:
            signal.setitimer(signal.ITIMER_REAL, 0)
            seen += 1
            afterwards()


def main(url: str, signals: int, seed: int) -> None:
    """Be called away so many times, say so, and end when asked to."""
    signal.signal(signal.SIGALRM, call_away)
    locks, others = LockProvider(url), LockProvider(url)
    over = threading.Event()
    threads = [threading.Thread(target=compete, args=(each, over)) for each in (locks, others)]
    for thread in threads:
        thread.start()
    chance = random.Random(seed)
    be_called_away(lambda: use(locks, chance), signals, chance)
    over.set()
    for thread in threads:
        thread.join()
    print("over", flush=True)
    sys.stdin.readline()
    for key in (*range(KEYS), "alone"):
        with locks.lock(key, timeout=5), others.lock(("other", key), timeout=5):
            pass
    locks.close()
    others.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
