"""The Django example: command, view and task share a lock, as real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from tests.conftest import server
from tests.servers import wait_until

PROJECT = Path(__file__).parents[2] / "example_projects" / "django_reports"
NAME = "dlock_reports"


class Site:
    """The example in a folder of its own."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self.folder = folder
        self.url = url
        self.stack = stack

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start a program of the project."""
        given = {"DATABASE_URL": self.url, "PYTHONPATH": str(PROJECT), "DJANGO_SETTINGS_MODULE": "reports.settings"}
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env={**os.environ, **given, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stack.callback(process.communicate)
        self.stack.callback(process.terminate)
        return process

    def manage(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start `manage.py`."""
        return self.start(str(PROJECT / "manage.py"), *words, **environment)

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Run `manage.py` to its end."""
        process = self.manage(*words, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def ask_task(self, name: str) -> str:
        """Let a worker build a report, and return what it says."""
        program = f"from reports.tasks import build_report; print(build_report.delay({name!r}).get(timeout=60))"
        out, err = self.manage("shell", "--no-imports", "-c", program).communicate(timeout=90)
        return out.strip() or err


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The example on a fresh database."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    if request.param == "postgresql":
        running = server("postgresql")
        with running.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {NAME}"))
            connection.execute(sa.text(f"CREATE DATABASE {NAME}"))
        url = running.url("postgresql", NAME, running.address.username)
    with ExitStack() as stack:
        yield Site(tmp_path, url, stack)


def _serve(site: Site) -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    site.manage("runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}")
    address = f"http://127.0.0.1:{port}/reports"
    wait_until(lambda: _is_up(address), "the server to answer", 30)
    return address


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/sales/").status_code == 405
    except httpx.TransportError:
        return False


def test_command_view_and_task_never_build_one_report_together(site: Site) -> None:
    """While the command builds, all others are refused in their own way; afterwards each builds."""
    migrate = ("dlock", "run", "migrate", "--lock-timeout", "60", "--", "migrate", "--verbosity", "0")
    assert [process.wait(60) for process in [site.manage(*migrate), site.manage(*migrate)]] == [0, 0]
    address = _serve(site)
    site.start("-m", "celery", "-A", "reports.celery", "worker", "--pool", "solo", "--loglevel", "ERROR")

    holder = site.manage("build_report", "sales", BUILD_SECONDS="600")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "building sales\n"
    code, _, err = site.run("build_report", "sales")
    assert (code, err.startswith("CommandLocked: 'report:sales' is locked by django on ")) == (75, True)
    answer = httpx.post(f"{address}/sales/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "5")
    assert site.ask_task("sales") == "this report is locked by another request"
    assert site.run("build_report", "costs")[:2] == (0, "building costs\ncosts, built 1 times\n")
    assert holder.poll() is None
    holder.kill()

    assert site.run("build_report", "sales", "--lock-timeout", "30")[0] == 0
    assert httpx.post(f"{address}/sales/").json() == {"report": "sales, built 2 times"}
    assert site.ask_task("sales") == "sales, built 3 times"


def test_a_command_for_the_machine_locks_on_sqlite(site: Site) -> None:
    """Whatever the project's own database is."""
    (site.folder / "old.draft").touch()
    assert site.run("clean_disk") == (0, "removed 1\n", "")
    assert (site.folder / "machine.db.dlock").is_dir()
