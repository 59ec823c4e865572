"""Folders, ports, accounts and the guard that all private servers share."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from . import guard

if TYPE_CHECKING:
    from collections.abc import Callable

# Below Linux' ephemeral ports. One of those could, while its server is down, be given to an outgoing connection; a
# client that retries could even connect to itself.
PORTS = range(20_000, 32_000)
# A normal user's PATH on Debian lacks the folders where the servers are.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


# The mark of what a process starts besides servers, which its guard ends, too; see `tests/leftovers.py`.
marks: dict[int, str] = {}


class ServerError(RuntimeError):
    """A server that cannot be found, started, stopped or controlled."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait until a condition holds, or raise a ServerError that says what was awaited."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"gave up after {seconds:g} s waiting for {what}")
        time.sleep(0.02)


def program(name: str) -> Path | None:
    """Find a program of the machine."""
    path = shutil.which(name, path=SEARCH_PATH)
    return Path(path) if path else None


def free_port() -> int:
    """Find a TCP port that no server uses."""
    # Not the shared generator: pytest plug-ins seed it alike in parallel workers.
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError(f"no free port among {PORTS}")


def unprivileged_account() -> pwd.struct_passwd | None:
    """Return the user as which a server that refuses root must run, None when we are not root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def readable_by_all(folder: Path) -> bool:
    """Tell whether any account of the machine can read a folder."""
    folder = folder.resolve()
    listable = folder.stat().st_mode & 0o005 == 0o005
    return listable and all(parent.stat().st_mode & 0o001 for parent in folder.parents)


def base_folder() -> Path:
    """Return the folder of this process' servers, which the guard removes when the process ends."""
    return _base_folder(os.getpid())  # a forked child gets a folder and a guard of its own


@functools.cache
def _base_folder(pid: int) -> Path:
    parent = tempfile.gettempdir()
    if unprivileged_account() and not readable_by_all(Path(parent)):
        parent = "/tmp"  # only mkdtemp creates something in it
    base = Path(tempfile.mkdtemp(prefix="dlock-servers-", dir=parent)).resolve()
    base.chmod(0o755)
    watcher = subprocess.Popen(
        [sys.executable, "-P", guard.__file__, str(pid), str(base), *([marks[pid]] if pid in marks else [])],
        env={name: value for name, value in os.environ.items() if not name.startswith("DLOCK_TEST_RUN")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
    )
    atexit.register(_leave, pid, base, watcher)
    return base


def _leave(pid: int, base: Path, watcher: subprocess.Popen[bytes]) -> None:
    if os.getpid() == pid:  # not in a forked child
        if pid in marks:
            guard.kill_marked(marks[pid])
        guard.remove(base)
        watcher.kill()
        watcher.wait()
