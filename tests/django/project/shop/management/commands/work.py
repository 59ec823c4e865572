"""A command that overrides `handle` and `add_arguments` like any other, and forgets super()."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import close_old_connections, connection

from dlock_django import LockedCommandMixin
from shop.models import Stock


class Command(LockedCommandMixin, BaseCommand):
    """Works."""

    log: Path | None

    def add_arguments(self, parser: CommandParser) -> None:
        """Have arguments of its own, among them one that many commands have."""
        parser.add_argument("path", nargs="?")
        parser.add_argument("--database", default="default")
        parser.add_argument("--do", choices=DEEDS, default="nothing")
        parser.add_argument("--log", type=Path, help="note beginning and end in this file")

    def handle(self, *, path: str | None, do: str, log: Path | None, **_: Any) -> str | None:
        """Note the beginning, do it, note the end."""
        self.log = log
        _note(log, "in")
        DEEDS[do](self)
        _note(log, "out")
        return f"worked on {path}" if path else None


def _note(log: Path | None, what: str) -> None:
    if log is not None:
        with log.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")


def _nothing(_: Command) -> None:
    pass


def _stay(command: Command) -> None:
    """Stay until the test says so, or has gone."""
    command.stdout.write("in")
    command.stdout.flush()
    sys.stdin.readline()


def _reconnect(command: Command) -> None:
    """Lose Django's own connection, as a loop of a long command does."""
    for _ in range(3):
        Stock.objects.count()
        close_old_connections()
    assert connection.connection is None
    _stay(command)


def _fork(command: Command) -> None:
    """Let forked workers come and go."""
    context = multiprocessing.get_context("fork")
    for _ in range(10):  # a pool is terminated while its second worker may still be starting
        with context.Pool(2) as pool:
            pool.map(abs, [1, 2])
    children = [context.Process(target=time.sleep, args=(0,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # through the lock's own `with`
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    _stay(command)


def _fail(_: Command) -> None:
    raise CommandError("broken")


def _leave(_: Command) -> None:
    raise SystemExit(4)


def _itself(_: Command) -> None:
    call_command("work", lock=True)


def _another(_: Command) -> None:
    call_command("nightly", lock=True)


def _alone(command: Command) -> None:
    """Fail if another process that lives is inside; stay until asked to go."""
    assert command.log is not None
    marker = command.log.with_suffix(".inside")
    if marker.is_symlink():
        if _lives(int(str(marker.readlink()))):
            sys.exit(9)
        marker.unlink()
    marker.symlink_to(str(os.getpid()))  # a link is there whole or not at all, whenever this process is killed
    sys.stdin.readline()
    if str(marker.readlink()) != str(os.getpid()):
        sys.exit(9)
    marker.unlink()


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


DEEDS: dict[str, Callable[[Command], None]] = {
    "nothing": _nothing,
    "stay": _stay,
    "reconnect": _reconnect,
    "fork": _fork,
    "fail": _fail,
    "leave": _leave,
    "itself": _itself,
    "another": _another,
    "alone": _alone,
}
