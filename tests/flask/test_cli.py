"""`flask dlock run`, and an application's own commands under a lock; in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dlock_core import UnsupportedError

from .places import Place, until

APP = """
import os
import click
import flask
from dlock_flask import DLock

dlock = DLock()

def create_app():
    app = flask.Flask("shop")
    app.config["DLOCK_URL"] = os.environ["URL"]
    dlock.init_app(app)

    @app.cli.command()
    @click.argument("tenant")
    @dlock.cli_locked("nightly:{tenant}")
    def nightly(tenant):
        click.echo(f"{tenant} {[handle.key for handle in dlock.held()]}")

    return app
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with an application factory."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def start(place: Place, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `flask` on the project."""
    return subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "shop:create_app", *arguments],
        cwd=folder,
        env={**os.environ, "URL": place.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flask(place: Place, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `flask` to its end; return its exit code and what it wrote."""
    process = start(place, folder, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_program_runs_under_a_lock_of_the_application(place: Place, folder: Path) -> None:
    """A second run names the holder, with 75 or the given status; then it is free again."""
    first = start(place, folder, "dlock", "run", "nightly", "--", "cat", "fifo")
    os.mkfifo(folder / "fifo")
    until(lambda: place.witness.holders() == 1, "the first to hold", 60)
    code, out, err = flask(place, folder, "dlock", "run", "nightly", "--", "echo", "second")
    assert (code, out) == (75, "")
    assert err.startswith("nightly is held by flask")
    (folder / "fifo").write_text("through")
    assert first.communicate(timeout=60) == ("through", "")
    program = "import os; print(os.environ['DLOCK_KEY']); raise SystemExit(3)"
    assert flask(place, folder, "dlock", "run", "nightly", "--", sys.executable, "-c", program) == (3, "nightly\n", "")


def test_a_person_on_call_sees_a_view_that_holds(place: Place) -> None:
    """`flask dlock list` and `show`, until it holds no more."""
    site = place.site()
    runner = site.app.test_cli_runner()
    with site.app.app_context():
        handle = site.dlock.hold("export:7")
        assert "flask" in runner.invoke(args=["dlock", "list"]).output
        shown = runner.invoke(args=["dlock", "show", "export:7"])
        assert (shown.exit_code, str(os.getpid()) in shown.output) == (0, True)
        handle.release()
        assert runner.invoke(args=["dlock", "show", "export:7"]).exit_code == 1


@pytest.mark.parametrize("place", ["postgresql", "mariadb", "mysql"], indirect=True)
def test_a_person_on_call_can_end_a_view_that_holds(place: Place) -> None:
    """`flask dlock terminate`, where a server can end a session; the view learns that it lost the lock."""
    site = place.site()
    runner = site.app.test_cli_runner()
    with site.app.app_context():
        handle = site.dlock.hold("export:7")
        ended = runner.invoke(args=["dlock", "terminate", "export:7", "--yes"])
        assert ended.output.startswith("ended flask")
        until(lambda: handle.lost, "the loss to be noticed")
        assert runner.invoke(args=["dlock", "show", "export:7"]).output == "export:7 is free\n"


def test_the_verbs_work_on_a_bind_too(place: Place, tmp_path: Path) -> None:
    """An unknown one is an error in one line, with the binds that there are."""
    site = place.site(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'own.db'}", SQLALCHEMY_BINDS={"there": place.url})
    runner = site.app.test_cli_runner()
    with place.held("export:7"):
        assert runner.invoke(args=["dlock", "show", "export:7"]).exit_code == 1
        assert runner.invoke(args=["dlock", "--bind", "there", "show", "export:7"]).exit_code == 0
    wrong = runner.invoke(args=["dlock", "--bind", "where", "list"])
    assert wrong.exit_code == 2
    assert "bind='where': not in SQLALCHEMY_BINDS; the binds are 'there'" in wrong.output


def test_a_command_of_the_application_runs_under_its_lock(place: Place, folder: Path) -> None:
    """The key comes from its arguments."""
    assert flask(place, folder, "nightly", "acme") == (0, "acme ['nightly:acme']\n", "")
    with place.held("nightly:acme"):
        code, out, err = flask(place, folder, "nightly", "acme")
        assert (code, out, err.count("\n")) == (75, "", 1)
        assert err.startswith("dlock: 'nightly:acme' is locked by ")
        assert f":{os.getpid()}" in err
        assert flask(place, folder, "nightly", "apex")[0] == 0


def test_a_plain_click_command_gets_the_application_by_itself(sqlite: Place) -> None:
    """Also below `click.command`, which knows nothing of Flask; an exit code may be chosen."""
    site = sqlite.site()

    @click.command()
    @site.dlock.cli_locked("nightly", exit_code=9)
    def nightly() -> None:
        click.echo(str(sqlite.witness.holders()))

    runner = site.app.test_cli_runner()
    assert runner.invoke(nightly).output == "1\n"
    with sqlite.held("nightly"):
        assert runner.invoke(nightly).exit_code == 9


def test_an_async_command_is_refused(sqlite: Place) -> None:
    """Click would never await it."""
    dlock = sqlite.site().dlock
    with pytest.raises(UnsupportedError, match="is async"):

        @dlock.cli_locked("nightly")
        async def nightly() -> None:
            """Do nothing."""
