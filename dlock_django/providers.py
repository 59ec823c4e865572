"""The lock providers of this process, and their engines: one for each database and set of options, made at first use.

An engine opens its connections through a copy of Django's own wrapper. So everything holds that Django knows about
the database: service files, roles, tokens that a custom backend fetches, and the test runner's database, whatever
name it has at that moment.

A provider's sessions stay for the next lock, as Django's connections do with CONN_MAX_AGE or a pool. Without these,
which is Django's default, they end when no lock has used them for some seconds; under a test runner, which drops the
database, at once. SQLite's are files, and stay.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from django.core import mail
from django.core.signals import setting_changed
from django.db import connections
from django.utils.module_loading import import_string
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from dlock_core import LockProvider, UnsupportedError
from dlock_core.adapters import Registry

from .conf import alias_of, options_of_providers, setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from django.db.backends.base.base import BaseDatabaseWrapper
    from sqlalchemy import Engine


__all__ = ["get_engine", "make_engine", "make_provider", "provider"]

# By Django's vendor, which custom backends inherit, and the module that Django itself imported.
DRIVERS = {
    ("postgresql", "psycopg"): "postgresql+psycopg",
    ("postgresql", "psycopg2"): "postgresql+psycopg2",
    ("mysql", "MySQLdb"): "mysql+mysqldb",
    ("mysql", "pymysql"): "mysql+pymysql",  # under install_as_MySQLdb()
    ("oracle", "oracledb"): "oracle+oracledb",
    ("microsoft", "pyodbc"): "mssql+pyodbc",
    ("sqlite", "sqlite3"): "sqlite",
}


def make_engine(alias: str) -> Engine:
    """Make an engine whose connections are made as Django makes its own; it pools none.

    Raises:
        UnsupportedError: We do not know the backend, and no DLOCK_ENGINE_FACTORY makes the engine.
    """
    factory = setting("DLOCK_ENGINE_FACTORY")
    if factory is not None:
        engine: Engine = (import_string(factory) if isinstance(factory, str) else factory)(alias)
        return engine
    vendor, driver = _backend(connections[alias])
    drivername = DRIVERS.get((vendor, driver))
    if drivername is None:
        raise UnsupportedError(
            f"DATABASES[{alias!r}]: no locks over the backend {vendor!r} with the driver {driver!r}. Set "
            "DLOCK_DATABASE to the alias of another database, or DLOCK_ENGINE_FACTORY to a function that returns an "
            "SQLAlchemy engine for an alias"
        )
    return create_engine(f"{drivername}://", creator=lambda: _connect(alias), poolclass=NullPool)


def _backend(wrapper: BaseDatabaseWrapper) -> tuple[str, str]:
    module: Any = getattr(wrapper, "Database", None)
    return wrapper.vendor, getattr(module, "__name__", "none").partition(".")[0]


def _connect(alias: str) -> Any:
    """Return a driver connection as Django would use it, but never one of Django's pool."""
    wrapper = connections[alias].copy()
    wrapper.settings_dict.get("OPTIONS", {}).pop("pool", None)
    wrapper.timezone, wrapper.timezone_name = UTC, "UTC"  # else USE_TZ = False cuts the zone off what psycopg reads
    wrapper.ensure_connection()
    return wrapper.connection


# The alias, the database that it leads to at the moment (a test runner changes it), and the options.
_Name: TypeAlias = tuple[str, str, tuple[Any, ...]]

# Seconds; opening a session takes many times as long as a lock on one that is there.
LINGER = 10.0

_providers: Registry[_Name, LockProvider] = Registry()
# One for each process, which keeps what SQLAlchemy learnt about the server; it pools no connection.
_engines: Registry[str, Engine] = Registry()


@contextmanager
def provider(alias: str) -> Iterator[LockProvider]:
    """Lend the provider of a database for the time of the block."""
    name = (alias, str(connections[alias].settings_dict["NAME"]), tuple(options_of_providers().values()))

    def make(cleanup: ExitStack) -> LockProvider:
        return cleanup.enter_context(make_provider(alias))

    with _providers.lend(name, make, partial(_linger, alias)) as lent:
        yield lent


def _linger(alias: str) -> float | None:
    """Return for how many seconds idle sessions of a database stay open; None: as long as the process."""
    if hasattr(mail, "outbox"):  # what a test runner's environment has
        return 0
    configured = connections.settings[alias]
    kept = configured["CONN_MAX_AGE"] != 0 or bool(configured["OPTIONS"].get("pool"))
    return None if kept or connections[alias].vendor == "sqlite" else LINGER


def make_provider(alias: str) -> LockProvider:
    """Make a provider that shares nothing with others, as if it were in another process."""
    return LockProvider(get_engine(alias), adapter="django", **options_of_providers())


def get_engine(using: str | None = None) -> Engine:
    """Return an SQLAlchemy engine whose connections are made as Django makes its own; it pools none.

    For `dlock_core.LockProvider` and whatever else wants one.

    Args:
        using: An alias of DATABASES; default: DLOCK_DATABASE.
    """
    alias = alias_of(using)
    return _engines.get(alias, lambda _cleanup: make_engine(alias))


def _forget_engines(*, setting: str, **_: object) -> None:
    if setting == "DLOCK_ENGINE_FACTORY":
        _engines.close()


setting_changed.connect(_forget_engines)
