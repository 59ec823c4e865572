"""`manage.py check` says what is wrong before a lock is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections
from django.test.utils import override_settings

from dlock_django.conf import DEFAULTS


def found(*, deploy: bool = False, databases: list[str] | None = None) -> dict[str, str]:
    """Return what our checks say: id and message."""
    issues = run_checks(tags=["dlock"], include_deployment_checks=deploy, databases=databases or [])
    return {str(issue.id): f"{issue.msg} {issue.hint or ''}" for issue in issues}


def forget(alias: str) -> None:
    """Let Django make its wrapper anew."""
    with suppress(AttributeError):  # it had none
        del connections[alias]


@pytest.fixture
def change(default_alias: str) -> Iterator[Any]:
    """What changes an entry of DATABASES."""
    before = {alias: dict(entry) for alias, entry in connections.settings.items()}
    yield lambda alias, **changes: connections.settings[alias].update(changes)
    for alias, entry in before.items():
        connections.settings[alias].update(entry)


def test_a_sound_project_has_nothing_to_hear(alias: str) -> None:
    """Not from the server either."""
    with override_settings(DLOCK_DATABASE=alias):
        assert found(databases=[alias]) == {}


def test_a_database_that_is_not_there_is_named(default_alias: str) -> None:
    """With those that are."""
    with override_settings(DLOCK_DATABASE="nowhere"):
        issues = found(deploy=True, databases=["default"])
    assert list(issues) == ["dlock.E001"]
    assert "'nowhere'" in issues["dlock.E001"]
    assert "'default'" in issues["dlock.E001"]


def test_a_backend_without_locks_is_named(default_alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to set."""
    configured = connections.configure_settings({"default": {}, "dummy": {}})
    monkeypatch.setitem(connections.settings, "dummy", configured["dummy"])
    with override_settings(DLOCK_DATABASE="dummy"):
        assert "DLOCK_ENGINE_FACTORY" in found()["dlock.E002"]
    forget("dummy")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DLOCK_PREFIX", None),
        ("DLOCK_TIMEOUT", -1),
        ("DLOCK_TIMEOUT", float("nan")),
        ("DLOCK_TIMEOUT", "5"),
        ("DLOCK_CONFLICT_EXIT_CODE", 256),
        ("DLOCK_CONFLICT_STATUS", 200),
        ("DLOCK_RETRY_AFTER", 0.5),
        ("DLOCK_MAX_SESSIONS", 1),
        ("DLOCK_HEARTBEAT", 0),
        ("DLOCK_LEASE", "5 s"),
        ("DLOCK_SHARE_SESSIONS", "yes"),
        ("DLOCK_SHOW_KEYS", 1),
        ("DLOCK_ALLOW_UNSAFE", "no"),
    ],
)
def test_a_wrong_value_is_named(default_alias: str, name: str, value: object) -> None:
    """With what it should be."""
    with override_settings(**{name: value}):
        issues = found()
        assert list(issues) == ["dlock.E003"]
        assert issues["dlock.E003"].startswith(f"{name}={value!r}: give ")


def test_the_defaults_are_right(default_alias: str) -> None:
    """Each has a rule that lets it through, when a project sets it."""
    with override_settings(**DEFAULTS):
        assert found() == {}


@pytest.mark.parametrize("factory", ["nowhere.make", "os.path.sep", 5])
def test_a_wrong_factory_is_named(default_alias: str, factory: object) -> None:
    """Before it is called."""
    with override_settings(DLOCK_ENGINE_FACTORY=factory):
        assert f"DLOCK_ENGINE_FACTORY = {factory!r}" in found()["dlock.E004"]


def test_a_misspelt_setting_is_named(default_alias: str) -> None:
    """It would be ignored."""
    with override_settings(DLOCK_TIMEOT=5):
        assert found()["dlock.E005"].startswith("there is no setting DLOCK_TIMEOT: did you mean DLOCK_TIMEOUT?")
    with override_settings(DLOCK_LEASE=5, DLOCK_SHARE_SESSIONS=False):
        assert "lease with share_sessions=False" in found()["dlock.E003"]


def test_sqlite_is_reported_when_it_is_deployed(default_alias: str) -> None:
    """One machine; or one process, in memory."""
    assert "within one machine" in found(deploy=True)["dlock.W001"]
    with override_settings(DLOCK_DATABASE="memory"):
        assert "within one process" in found(deploy=True)["dlock.W002"]


def test_what_looks_like_a_pooler_is_reported_when_it_is_deployed(postgresql_alias: str, change: Any) -> None:
    """By the setting that Django's manual asks for behind one, or by the port."""
    with override_settings(DLOCK_DATABASE="postgresql"):
        assert found(deploy=True) == {}
        change("postgresql", DISABLE_SERVER_SIDE_CURSORS=True)
        assert "transaction mode" in found(deploy=True)["dlock.W003"]


def test_a_server_that_cannot_be_asked_is_reported(change: Any) -> None:
    """By `check --database`, and only for the database that lends the locks."""
    change("second", NAME="/nowhere/app.db")
    forget("second")
    with override_settings(DLOCK_DATABASE="second"):
        assert found(databases=["default"]) == {}
        assert "unable to open database file" in found(databases=["second"])["dlock.W003"]
    forget("second")
