"""End the servers of a test run that has died, even by SIGKILL.

Run as ``python -P guard.py PARENT FOLDER [MARK]``: as soon as the process PARENT is gone, every process that works
inside FOLDER, or has MARK in its environment, is killed, and FOLDER is removed. PR_SET_PDEATHSIG would not do: it fires
when the starting *thread* ends, does not reach frozen PostgreSQL backends, and leaves the folder behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

POLL_SECONDS = 0.2
KILL_SECONDS = 10.0


def processes_in(folder: Path) -> list[psutil.Process]:
    """List the living processes whose working directory lies inside a folder.

    Unlike a process tree, this also finds the children of a server whose main process is already dead.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def processes_marked(mark: str) -> list[psutil.Process]:
    """List the living processes that were started with ``NAME=value`` in their environment, but for this one."""
    name, _, value = mark.partition("=")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def kill_all(folder: Path) -> None:
    """Kill every process inside a folder, and wait until there are none."""
    _kill(lambda: processes_in(folder))


def kill_marked(mark: str) -> None:
    """Kill every process with a mark, and wait until there are none."""
    _kill(lambda: processes_marked(mark))


def _kill(find: Callable[[], list[psutil.Process]]) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    # In rounds, because a process that is still alive may fork while we look. A zombie is its parent's to wait for.
    while (processes := [process for process in find() if not is_dead(process)]) and time.monotonic() < deadline:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)


def is_dead(process: psutil.Process) -> bool:
    """Tell whether a process is gone, or a zombie: in a container orphans may not be reaped."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def remove(folder: Path) -> None:
    """Kill every process inside a folder, and remove it with all that belongs to it."""
    kill_all(folder)
    for pid_file in folder.rglob("postmaster.pid"):
        # A killed PostgreSQL leaves a small System V segment. The file's seventh line has its key and its id.
        segment = pid_file.read_text().splitlines()[6:7]
        if segment and (ipcrm := shutil.which("ipcrm")):
            subprocess.run([ipcrm, "-m", segment[0].split()[1]], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def main(parent: int, folder: Path, *marks: str) -> None:
    """Wait for the parent's end, then clean up after it."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    for mark in marks:
        kill_marked(mark)
    remove(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
