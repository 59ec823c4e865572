"""A program whose child ends by a full interpreter exit, destructors included, inside a held lock."""

from __future__ import annotations

import os
import sys

from dlock_core import LockProvider


def main(url: str) -> None:
    """Fork inside a lock; the child runs to the end of the interpreter, then the parent looks."""
    locks = LockProvider(url)
    with locks.lock("forked") as lock:
        pid = os.fork()
        if pid == 0:
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert lock.held
        assert not LockProvider(url).lock("forked").acquire(timeout=0), "the child took the lock away"
    locks.close()
