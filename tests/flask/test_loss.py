"""A lock that the database takes away while a view has it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flask
import pytest

from dlock_core import LockLostError
from dlock_flask import lock_lost, lock_released

from .places import Place, Site, until

SERVERS = ("postgresql", "mariadb", "mysql")


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A server, which can end sessions."""
    place = Place(request.param, tmp_path)
    yield place
    place.close()


@contextmanager
def hearing() -> Iterator[list[tuple[Any, Any]]]:
    """Note which application sends that a lock is lost; a lost lock must not be reported as released."""
    heard: list[tuple[Any, Any]] = []
    released: list[Any] = []

    def note(sender: Any, key: Any, **about: Any) -> None:
        assert about.keys() == {"bind", "held_for", "lock"}
        heard.append((sender, key))

    def note_release(_sender: Any, key: Any, **_: Any) -> None:
        released.append(key)

    with lock_lost.connected_to(note), lock_released.connected_to(note_release):
        yield heard
    assert released == []


def test_a_view_whose_lock_is_lost_fails(place: Place, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The signal comes once, while the view still runs; the log has an ERROR; leaving the lock raises."""

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export") as handle:
            place.witness.break_lock()
            until(lambda: handle.lost, "the loss to be noticed")
            assert not handle.held
        return "never"

    with hearing() as heard:
        with pytest.raises(LockLostError, match="'export'"):
            site.get("/export")
        until(lambda: heard == [(site.app, "export")], "the one signal")
    assert [record.levelname for record in caplog.records if "lost" in record.message] == ["ERROR"]
    assert place.free("export")


def test_a_loss_never_hides_the_views_own_exception(place: Place, site: Site) -> None:
    """An abort stays the answer."""

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export") as handle:
            place.witness.break_lock()
            until(lambda: handle.lost, "the loss to be noticed")
            flask.abort(404)

    assert site.get("/export").status_code == 404


def test_an_async_view_whose_lock_is_lost_fails(place: Place, site: Site) -> None:
    """In the same way."""

    @site.app.get("/export")
    async def view() -> str:
        async with site.dlock.alock("export") as handle:
            place.witness.break_lock()
            until(lambda: handle.lost, "the loss to be noticed")
        return "never"

    with hearing() as heard:
        with pytest.raises(LockLostError, match="'export'"):
            site.get("/export")
        until(lambda: heard == [(site.app, "export")], "the one signal")


def test_a_loss_under_a_stream_breaks_the_body_off(place: Place, site: Site) -> None:
    """So that no client takes what it got for the whole."""

    @site.app.get("/export")
    @site.dlock.locked("export")
    def view() -> Iterator[str]:
        yield "a"
        place.witness.break_lock()
        yield "b"

    answer = site.get("/export")
    with pytest.raises(LockLostError, match="'export'"):
        _ = answer.data


def test_a_loss_before_the_stream_is_an_error_too(place: Place, site: Site) -> None:
    """The view returns a body, but nothing protects it."""

    @site.app.get("/export")
    @site.dlock.locked("export")
    def view() -> Iterator[str]:
        place.witness.break_lock()
        until(lambda: not site.dlock.held(), "the loss to be noticed")
        return iter("abc")

    with pytest.raises(LockLostError, match="'export'"):
        site.get("/export")


def test_a_loss_under_hold_is_logged(place: Place, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The answer is made by then; the handle tells the caller before."""
    with site.app.app_context():
        handle = site.dlock.hold("export")
        place.witness.break_lock()
        until(lambda: handle.lost, "the loss to be noticed")
    assert "could not be released at the end of the context" in caplog.text


def test_a_restarted_database_is_a_loss_and_then_serves_again(place: Place, site: Site) -> None:
    """Nothing has to restart the application."""
    assert place.server is not None
    if not place.server.controllable:
        pytest.skip("the server is not ours to restart")

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export") as handle:
            place.restart()
            until(lambda: handle.lost, "the loss to be noticed")
        return "never"

    @site.app.get("/again")
    def again() -> str:
        with site.dlock.lock("export", timeout=30):
            return "done"

    with hearing() as heard:
        with pytest.raises(LockLostError):
            site.get("/export")
        until(lambda: heard == [(site.app, "export")], "the one signal")
    assert site.get("/again").text == "done"


def test_a_command_whose_lock_is_lost_says_so(place: Place, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """In one line, and ends with 74."""
    caplog.set_level(logging.CRITICAL, "dlock")

    @site.app.cli.command()
    @site.dlock.cli_locked("nightly")
    def nightly() -> None:
        place.witness.break_lock()

    result = site.app.test_cli_runner().invoke(args=["nightly"])
    assert result.exit_code == 74
    assert result.output.startswith("dlock: key 'nightly': the lock was lost")
