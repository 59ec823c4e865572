"""One template and one value are one lock: in the core, in a Celery task, in Django and in Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import flask
import pytest
from celery import Celery
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from dlock_celery import DLock as CeleryDLock
from dlock_celery import current_lock, get_provider, single_instance
from dlock_core import LockProvider, LockTimeoutError
from dlock_django import lock, lock_view
from dlock_django.providers import provider
from dlock_flask import DLock as FlaskDLock
from dlock_flask import LockConflict
from tests.conftest import server

from .inside import NAME

KEY = "order:{x}"
ActualKey = int | str
Body = Callable[[], None]


class Kind(Enum):
    """An enumeration."""

    A = "a"


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: Decimal


VALUES = [
    "text",
    7,
    True,
    None,
    1.5,
    b"x",
    Decimal("10.00"),
    UUID(int=7),
    datetime(2024, 5, 1, 10, tzinfo=UTC),
    datetime(2024, 5, 1, 10),  # noqa: DTZ001 - people have such
    date(2024, 5, 1),
    timedelta(minutes=5),
    Kind.A,
    [1, "1"],
    (1, None),
    {"b": 2, "a": [True]},
    Point(1, Decimal("1.0")),
]


class Ways:
    """Five ways to run a body under the lock of a value; each returns the lock's name at the database, or None."""

    def __init__(self, url: str, alias: str) -> None:
        self.locks = LockProvider(url)
        self.body: Body = lambda: None
        self.celery = Celery("ways", set_as_current=False, broker="memory://")
        CeleryDLock(self.celery, url=url)
        self.flask = flask.Flask("ways")
        self.flask.config.update(DLOCK_URL=url, TESTING=True)
        dlock = FlaskDLock(self.flask)
        self.alias = alias

        @self.celery.task(name="ways", shared=False)
        @single_instance(key=KEY, on_conflict="skip")
        def task(x: Any) -> ActualKey:
            self.body()
            held = current_lock()
            assert held
            return held.actual_key

        @dlock.locked(KEY)
        def view(x: Any) -> Any:
            self.body()
            return self.flask.extensions["dlock"].provider(None).held_locks()[0].actual_key

        self.task, self.flask_view = task, view

    def core(self, value: Any) -> ActualKey | None:
        """A decorated function of the core."""

        @self.locks.locked(KEY, timeout=0)
        def run(x: Any) -> ActualKey:
            self.body()
            return self.locks.held_locks()[0].actual_key

        try:
            return run(value)
        except LockTimeoutError:
            return None

    def celery_task(self, value: Any) -> ActualKey | None:
        """A task."""
        found: ActualKey | None = self.task(value)
        return found

    def django_function(self, value: Any) -> ActualKey | None:
        """A decorated function of Django."""

        @lock(KEY, using=self.alias)
        def run(x: Any) -> ActualKey:
            self.body()
            return self._held_by_django()

        try:
            return run(value)
        except LockTimeoutError:
            return None

    def _held_by_django(self) -> ActualKey:
        with provider(self.alias) as locks:
            return locks.held_locks()[0].actual_key

    def django_view(self, value: Any) -> ActualKey | None:
        """A view of Django, with what its URL captured."""
        names = []

        @lock_view(KEY, using=self.alias)
        def view(request: HttpRequest, x: Any) -> HttpResponse:
            self.body()
            names.append(self._held_by_django())
            return HttpResponse()

        answer = view(RequestFactory().get("/"), x=value)
        return names[0] if answer.status_code == 200 else None

    def flask_route(self, value: Any) -> ActualKey | None:
        """A view of Flask."""
        with self.flask.test_request_context():
            try:
                found: ActualKey = self.flask_view(x=value)
            except LockConflict:
                return None
            return found

    def close(self) -> None:
        """End all lock sessions but Django's, which end by themselves."""
        with self.flask.app_context():
            self.flask.extensions["dlock"].close()
        get_provider(self.celery).close()
        self.locks.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ways(request: pytest.FixtureRequest, inside: Path) -> Iterator[Ways]:
    """All of them on one database."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{inside / 'app.db'}" if sqlite else server("postgresql").url("postgresql+psycopg", NAME)
    opened = Ways(url, "default" if sqlite else "postgresql")
    yield opened
    opened.close()


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_one_template_and_value_are_one_lock_everywhere(ways: Ways, value: Any) -> None:
    """It has one name at the database, and its holder keeps all others out."""
    all_ways = (ways.core, ways.celery_task, ways.django_function, ways.django_view, ways.flask_route)
    names = [way(value) for way in all_ways]
    assert None not in names
    assert len(set(names)) == 1
    for holder in all_ways:
        refused: list[str] = []

        def meet(holder: Any = holder, refused: list[str] = refused) -> None:
            ways.body = lambda: pytest.fail("two holders")
            others = [way for way in all_ways if way != holder]
            refused += [way.__name__ for way in others if way(value) is None]

        ways.body = meet
        assert holder(value) is not None
        assert len(refused) == 4
        ways.body = lambda: None
