"""`dlock list` and `terminate`, while a Celery worker, a `manage.py` command and a Flask application hold."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import sqlalchemy as sa

from tests.celery.sites import DRIVERS, Site, open_site
from tests.celery.stage import Stage
from tests.celery.workers import ROOT, Worker
from tests.conftest import server
from tests.django.databases import entry, sqlite_entry
from tests.django.site import Running
from tests.django.site import Site as DjangoSite
from tests.servers import wait_until
from tests.servers.sandbox import free_port


class Holder(NamedTuple):
    """A process that holds a key."""

    adapter: str
    key: str
    pid: int


class Crowd:
    """The three holders, and those that wait in the shell."""

    def __init__(self, kind: str, folder: Path, until: ExitStack) -> None:
        self.folder, self.until = folder, until
        self.site: Site = until.enter_context(open_site("filesystem", kind, folder))
        self.url = self.site.lock_url
        self.celery, stage = self._celery()
        self.django = self._django(kind)
        self.flask = self._flask()
        self.holders = [
            Holder("celery", stage.path, self.celery.process.pid),
            Holder("django", "import", self.django.process.pid),
            Holder("flask", "stream", self.flask.pid),
        ]
        wanted = [("", stage.path), ("", stage.path), ("", "import"), ("", "import"), ("", "stream")]
        self.waiters = [(f"{prefix}:{key}".strip(":"), self._waiter(prefix, key)) for prefix, key in wanted]

    def _celery(self) -> tuple[Worker, Stage]:
        stage = Stage(self.folder / "s")
        self.until.callback(stage.open)
        worker = self.until.enter_context(Worker("solo", self.site.configuration, self.folder, "-P", "solo"))
        self.until.callback(stage.open)
        self.site.send("skip", stage.path, "hold")
        stage.wait_for_runs(1)
        return worker, stage

    def _django(self, kind: str) -> Running:
        name = sa.make_url(self.url).database
        given = sqlite_entry(self.folder, NAME=name) if kind == "sqlite" else entry(server(kind), NAME=name)
        django = DjangoSite({"default": given}, "pymysql" if "pymysql" in self.url else None)
        self.until.callback(django.close)
        return django.start("work", "--do", "stay", "--lock", "--lock-key", "import").wait_in()

    def _flask(self) -> subprocess.Popen[bytes]:
        port = str(free_port())
        given = {"SERVED_URL": self.url, "SERVED_JOURNAL": str(self.folder / "journal")}
        words = ("-m", "flask", "--app", "tests.flask.served", "run", "--port", port)
        log = self.until.enter_context((self.folder / "flask.log").open("wb"))
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env={**os.environ, **given}, stderr=log)
        self.until.callback(process.wait, 30)
        self.until.callback(process.terminate)
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/born"), "the application to answer", 30)
        answer = self.until.enter_context(httpx.stream("GET", f"http://127.0.0.1:{port}/stream", timeout=30))
        self.chunks = answer.iter_bytes()  # whose end is the end of the answer
        assert next(self.chunks).startswith(b"chunk")
        return process

    def _waiter(self, prefix: str, key: str) -> subprocess.Popen[bytes]:
        process = start(self.url, "run", key, "--prefix", prefix, "--timeout", "60", "--", "true")
        self.until.callback(process.communicate)
        self.until.callback(process.kill)
        return process

    def say_lost(self) -> None:
        """See each holder say so, in its own way."""
        wait_until(lambda: bool(self.celery.lines("ERROR", "lost the lock")), "Celery's log to tell", 10)
        assert self.django.finish() == 74
        wait_until(lambda: "lost" in (self.folder / "flask.log").read_text(), "Flask's log to tell", 10)


def answers(address: str) -> bool:
    """Tell whether a server is up."""
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def start(url: str, *words: str) -> subprocess.Popen[bytes]:
    """Start the command `dlock`."""
    command = [sys.executable, "-m", "dlock_core.cli", *words]
    return subprocess.Popen(command, env={**os.environ, "DLOCK_URL": url}, stdout=subprocess.PIPE)


def output(url: str, *words: str) -> str:
    """Return what the command prints, when all is well."""
    process = start(url, *words)
    printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, printed
    return printed


@contextmanager
def short_folder() -> Iterator[Path]:
    """Lend a folder whose name PostgreSQL need not cut."""
    with tempfile.TemporaryDirectory(prefix="dl") as name:
        yield Path(name)


@pytest.fixture(params=["sqlite", *DRIVERS])
def crowd(request: pytest.FixtureRequest) -> Iterator[Crowd]:
    """All of them on one database."""
    with ExitStack() as until:
        crowd = Crowd(request.param, until.enter_context(short_folder()), until)
        yield crowd


def seen(url: str) -> dict[tuple[str, str, int], set[int]]:
    """Return what the list shows: each holder, and the processes that wait for it."""
    found: list[dict[str, Any]] = json.loads(output(url, "list", "--json"))
    for one in found:
        assert {session["host"] for session in (one, *one["waiters"])} == {socket.gethostname()}
        assert {session["adapter"] for session in one["waiters"]} <= {"shell"}
        assert one["since"] or one["session_since"]
    return {(one["adapter"], one["key"], one["pid"]): {session["pid"] for session in one["waiters"]} for one in found}


@pytest.mark.slow
def test_three_adapters_and_five_that_wait_are_listed_and_can_be_ended(crowd: Crowd) -> None:
    """By key, adapter, host, process and age; a waiter gets the lock, and the holder says that it lost it."""
    expected = {
        tuple(holder): {process.pid for key, process in crowd.waiters if key == holder.key} for holder in crowd.holders
    }
    assert sorted(map(len, expected.values())) == [1, 2, 2]
    wait_until(lambda: seen(crowd.url) == expected, f"{expected} to be listed", 30)
    table = output(crowd.url, "list")
    assert len(table.splitlines()) == 1 + 3 + 5
    assert {line.split()[-1] for line in table.splitlines()[1:]} <= {"s", "min"}
    for holder in crowd.holders:
        assert f"ended {holder.adapter} on " in output(crowd.url, "terminate", holder.key, "--yes")
    for _, process in crowd.waiters:
        process.communicate(timeout=60)
        assert process.returncode == 0
    crowd.say_lost()
    wait_until(lambda: json.loads(output(crowd.url, "list", "--json")) == [], "the last lock to be free", 20)
