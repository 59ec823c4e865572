"""A program that forks inside a held lock; its children end in every way, after locks of their own.

Run with: url, "os" or "C". The latter forks behind Python's back, so that none of its hooks runs in the
child. It says how each child ended, and waits for a line before the next, so that the server can be asked
which of them holds the lock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dlock_core import LockProvider


def say(line: str) -> None:
    """Say something, and wait until it was heard."""
    print(line, flush=True)
    sys.stdin.readline()


def end(way: str) -> None:
    """End this child; a return goes on to the interpreter's own end."""
    match way:
        case "sys.exit":
            sys.exit(3)
        case "exception":
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - the interpreter reports to it, and ends
            raise ZeroDivisionError
        case "os._exit":
            os._exit(4)
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, fork: Callable[[], int]) -> None:
    """Hold, fork, wait, and tell."""
    locks = LockProvider(url)
    with locks.lock("warm"):
        pass
    lock = locks.lock("k")
    lock.acquire()
    for way in ("return", "sys.exit", "exception", "os._exit", "SIGKILL"):
        pid = fork()
        if pid == 0:
            assert not locks.lock("k").acquire(timeout=0)
            with locks.lock("own", timeout=5) as own:
                assert own.held
            end(way)
            return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        say(f"{way} {status}")
    lock.release()
    say("released")
    with locks.lock("k", timeout=0):
        pass
    locks.close()


if __name__ == "__main__":
    main(sys.argv[1], os.fork if sys.argv[2] == "os" else ctypes.PyDLL(None).fork)
