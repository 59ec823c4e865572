"""The HTTP answer to a conflict, and the signals."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import flask
import pytest

from dlock_flask import DLock, LockConflict, lock_acquired, lock_conflict, lock_released

from .places import Place, Site

STATUSES = [409, 423, 429, 503]


def add_view(site: Site, **options: Any) -> None:
    """Add a view that holds a key with a secret in it."""

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("secret-project", **options):
            return "done"


@pytest.mark.parametrize("status", STATUSES)
def test_an_application_chooses_its_status(sqlite: Place, status: int) -> None:
    """And a call another, with its own header."""
    site = sqlite.site(DLOCK_CONFLICT_STATUS=status, DLOCK_RETRY_AFTER=1)
    add_view(site)
    other = STATUSES[STATUSES.index(status) - 1]

    @site.app.get("/other")
    def other_view() -> str:
        with site.dlock.lock("secret-project", status=other, retry_after=7):
            return "done"

    with sqlite.held("secret-project"):
        answer = site.get("/export")
        assert (answer.status_code, answer.headers.getlist("Retry-After")) == (status, ["1"])
        answer = site.get("/other")
        assert (answer.status_code, answer.headers.getlist("Retry-After")) == (other, ["7"])


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("handled", ["number", "class", "blueprint"])
def test_an_applications_own_handler_answers(sqlite: Place, status: int, handled: str) -> None:
    """Registered for the number, for the class, or in a blueprint; the client gets JSON."""
    site = sqlite.site(DLOCK_CONFLICT_STATUS=status)
    blueprint = flask.Blueprint("api", __name__)

    @blueprint.get("/export")
    def view() -> str:
        with site.dlock.lock("export"):
            return "done"

    def as_json(conflict: LockConflict) -> Any:
        return {"busy": conflict.key, "why": conflict.description}, conflict.code

    where: Any = blueprint if handled == "blueprint" else site.app
    where.register_error_handler(status if handled == "number" else LockConflict, as_json)
    site.app.register_blueprint(blueprint)
    with sqlite.held("export"):
        answer = site.get("/export")
    assert (answer.status_code, answer.json["busy"]) == (status, "export")  # type: ignore[index]


def test_the_answer_names_neither_the_key_nor_its_holder(sqlite: Place) -> None:
    """Keys may be names of customers."""
    site = sqlite.site()
    add_view(site)
    with sqlite.held("secret-project"):
        answer = site.get("/export")
    assert "This resource is locked by another request" in answer.text
    assert "secret" not in answer.text
    assert "secret" not in str(answer.headers)


def test_the_answer_names_the_key_and_its_holder_in_debug_mode(place: Place) -> None:
    """Where only a developer reads it."""
    site = place.site(DEBUG=True)
    add_view(site)
    with place.held("secret-project"):
        text = site.get("/export").text
    assert "secret-project" in text
    assert "held by" in text
    assert f"{platform.node()[:24]}:{os.getpid()}" in text


@pytest.mark.parametrize("testing", [True, False])
def test_a_conflict_is_an_answer_with_and_without_testing(sqlite: Place, testing: bool) -> None:
    """Flask's tests let exceptions through, but not answers."""
    site = sqlite.site(TESTING=testing)
    add_view(site)
    with sqlite.held("secret-project"):
        assert site.get("/export").status_code == 409


def test_a_conflict_is_logged_once_with_its_key(sqlite: Place, caplog: pytest.LogCaptureFixture) -> None:
    """In the server's log, where the key may stand."""
    site = sqlite.site()
    add_view(site)
    with caplog.at_level(logging.INFO, "dlock"), sqlite.held("secret-project"):
        site.get("/export")
    assert [record.levelname for record in caplog.records if "held elsewhere" in record.message] == ["INFO"]


@contextmanager
def listening() -> Iterator[list[tuple[str, Any, Any]]]:
    """Note the sender of each signal."""
    heard: list[tuple[str, Any, Any]] = []
    receivers = {}
    for signal in (lock_acquired, lock_released, lock_conflict):

        def note(sender: Any, key: Any, name: str = signal.name, **_: Any) -> None:
            heard.append((name, sender, key))

        receivers[signal] = note
        signal.connect(note)
    yield heard
    for signal, receiver in receivers.items():
        signal.disconnect(receiver)


def test_each_signal_comes_once_from_the_application_itself(place: Place, site: Site) -> None:
    """Not from Flask's proxy, which would be another application elsewhere."""
    add_view(site)
    with listening() as heard:
        site.get("/export")
        with place.held("secret-project"):
            site.get("/export")
    key = "secret-project"
    assert heard == [
        ("lock-acquired", site.app, key),
        ("lock-released", site.app, key),
        ("lock-conflict", site.app, key),
    ]


def test_signals_have_the_arguments_of_celery_and_django(sqlite: Place) -> None:
    """`key`, and `waited` or `held_for`; besides, where."""
    site = sqlite.site()
    heard: list[tuple[str, ...]] = []

    def note(_sender: Any, **about: Any) -> None:
        heard.append(tuple(sorted(about)))
        assert (about["key"], about["bind"]) == ("export", None)

    signals = (lock_acquired, lock_conflict, lock_released)
    with ExitStack() as stack:
        for signal in signals:
            stack.enter_context(signal.connected_to(note))
        with site.app.app_context(), site.dlock.lock("export"), site.dlock.try_lock("export"):
            pass
    assert heard == [("bind", "key", "waited"), ("bind", "key", "waited"), ("bind", "held_for", "key")]


def test_a_failing_receiver_breaks_no_lock(place: Place, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged."""
    add_view(site)

    def fail(sender: Any, **_: Any) -> None:
        raise ZeroDivisionError

    with lock_acquired.connected_to(fail), lock_released.connected_to(fail):
        assert site.get("/export").status_code == 200
    assert place.witness.holders() == 0
    assert "a receiver of the signal lock-acquired failed" in caplog.text
    assert "a receiver of the signal lock-released failed" in caplog.text


def test_reentrant_handles_send_one_pair_of_signals(sqlite: Place) -> None:
    """There is one lock."""
    site = sqlite.site()
    with listening() as heard, site.app.app_context(), site.dlock.lock("export"):
        site.dlock.hold("export", reentrant=True)
    assert [name for name, _, _ in heard] == ["lock-acquired", "lock-released"]


def test_a_conflict_outside_of_a_request_has_its_details() -> None:
    """For code that catches it."""
    app = flask.Flask("shop")
    app.config.update(DLOCK_URL="sqlite://", DLOCK_RETRY_AFTER=4, TESTING=True)
    dlock = DLock(app)
    with app.app_context(), dlock.lock("export"):
        with pytest.raises(LockConflict) as caught:
            dlock.hold("export")
        assert (caught.value.key, caught.value.code, caught.value.retry_after) == ("export", 409, 4)
        assert str(caught.value) == "409 Conflict: This resource is locked by another request. Try again later."
