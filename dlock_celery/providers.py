"""Where an app's locks come from: one provider for each database, made when it is first needed."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery.exceptions import ImproperlyConfigured
from sqlalchemy import Engine, create_engine, make_url

from dlock_core import LockProvider
from dlock_core.adapters import PROVIDER_OPTIONS, Registry, provider_options, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from celery import Celery
    from sqlalchemy import URL

__all__ = ["SETTINGS", "DLock", "get_provider"]

# What an app's settings can say about its databases, without `dlock_`.
SETTINGS = ("url", "engine", "engine_options", "binds", *PROVIDER_OPTIONS)
# Drivers that wait in C without letting other greenlets run.
BLOCK_GEVENT = {"psycopg2": "psycopg (version 3)", "mysqldb": "PyMySQL"}
_providers: WeakKeyDictionary[Celery, Registry[str | None, LockProvider]] = WeakKeyDictionary()


class DLock:
    """Tell an app which database its locks are in; the settings of the app come first.

    Args:
        app: The Celery app, or call `init_app` later.
        url: The database, as an SQLAlchemy URL; setting `dlock_url`.
        engine: In place of a URL, an SQLAlchemy engine; setting `dlock_engine`.
        engine_options: For `create_engine`, with a URL; setting `dlock_engine_options`.
        binds: More databases, by the names that tasks give as `bind`; setting `dlock_binds`.
        prefix: Goes before every key; setting `dlock_prefix`. The same key under the same prefix is the same lock
            for every program on that database, in Celery or not.
    """

    def __init__(
        self,
        app: Celery | None = None,
        *,
        url: str | URL | None = None,
        engine: Engine | None = None,
        engine_options: Mapping[str, Any] | None = None,
        binds: Mapping[str, str | URL | Engine] | None = None,
        prefix: str | None = None,
    ) -> None:
        given = {"url": url, "engine": engine, "engine_options": engine_options, "binds": binds, "prefix": prefix}
        self._defaults = {f"dlock_{name}": value for name, value in given.items() if value is not None}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> None:
        """Give the app these values for the settings that its configuration does not set."""
        app.add_defaults(lambda: self._defaults)


def get_provider(app: Celery, bind: str | None = None) -> LockProvider:
    """Return the provider of an app's locks in this process, for `inspect` and locks beyond tasks.

    Args:
        app: The Celery app.
        bind: One of `dlock_binds`; None is for `dlock_url` or `dlock_engine`.

    Raises:
        ImproperlyConfigured: No database is named, or its driver does not work with the worker's pool.
    """
    return _providers.setdefault(app, Registry()).get(bind, partial(_make, app, bind))


def _place(app: Celery, bind: str | None) -> str | URL | Engine:
    if bind is None:
        place = app.conf.get("dlock_engine") or app.conf.get("dlock_url")
        missing = "dlock_url is not set: name the database for the locks, for example in DLock(app, url=…)"
    else:
        binds: Mapping[str, str | URL | Engine] = app.conf.get("dlock_binds") or {}
        place = binds.get(bind)
        missing = f"bind={shown(bind)} is not in dlock_binds: name its database there"
    if not place:
        raise ImproperlyConfigured(missing)
    return place  # type: ignore[no-any-return]


def _make(app: Celery, bind: str | None, cleanup: ExitStack) -> LockProvider:
    place, engine_options = _place(app, bind), app.conf.get("dlock_engine_options")
    if engine_options and not isinstance(place, Engine):
        place = create_engine(place, **engine_options)
        cleanup.callback(place.dispose)
    _check_greenlets(place.dialect.driver if isinstance(place, Engine) else make_url(place).get_dialect().driver)
    try:
        options = provider_options(app.conf.get, "dlock_{}".format)
    except ValueError as error:
        raise ImproperlyConfigured(str(error)) from error
    try:
        return cleanup.enter_context(LockProvider(place, adapter="celery", **options))
    except ValueError as error:  # which begins with the name of the option
        raise ImproperlyConfigured(f"dlock_{error}") from error


def _check_greenlets(driver: str) -> None:
    """Refuse what would halt all greenlets of a worker while one waits, or cannot work in one."""
    if _is_patched("eventlet.patcher", "is_monkey_patched"):
        raise ImproperlyConfigured("eventlet, which its authors have given up, has no locks: use a gevent worker")
    if driver not in BLOCK_GEVENT or not _is_patched("gevent.monkey", "is_module_patched"):
        return
    extensions = sys.modules.get("psycopg2.extensions")
    if driver == "psycopg2" and extensions is not None and extensions.get_wait_callback() is not None:
        return  # psycogreen
    raise ImproperlyConfigured(
        f"{driver} halts all greenlets of a gevent worker while one waits: use {BLOCK_GEVENT[driver]} in dlock_url"
    )


def _is_patched(module: str, question: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and bool(getattr(found, question)("socket"))
