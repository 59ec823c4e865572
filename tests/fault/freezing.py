"""Freezes a process."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subprocess import Popen

__all__ = ["freeze"]


def freeze(process: Popen[str]) -> None:
    """Stop a child, and wait until all its threads stand still: the signal alone lets some go on for a while."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
