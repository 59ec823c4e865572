"""An SQLAlchemy engine for an entry of DATABASES.

The engine opens its connections through a copy of Django's own wrapper. So everything holds that
Django knows about the database: service files, roles, tokens that a custom backend fetches, and the
test runner's database, whatever name it has at that moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections
from django.utils.module_loading import import_string
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from dlock_core import UnsupportedError

from .conf import setting

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from sqlalchemy import Engine

__all__ = ["make_engine", "refusal_of"]

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
    wrapper = connections[alias]
    drivername = DRIVERS.get(_backend(wrapper))
    if drivername is None:
        raise UnsupportedError(refusal_of(alias))
    return create_engine(f"{drivername}://", creator=lambda: _connect(alias), poolclass=NullPool)


def refusal_of(alias: str) -> str:
    """Say that we do not know the backend of an alias, and what to set."""
    vendor, driver = _backend(connections[alias])
    return (
        f"DATABASES[{alias!r}]: no locks over the backend {vendor!r} with the driver {driver!r}. Set DLOCK_DATABASE to "
        "the alias of another database, or DLOCK_ENGINE_FACTORY to a function that returns an SQLAlchemy engine for an "
        "alias"
    )


def _backend(wrapper: BaseDatabaseWrapper) -> tuple[str, str]:
    module: Any = getattr(wrapper, "Database", None)
    return wrapper.vendor, getattr(module, "__name__", "none").partition(".")[0]


def _connect(alias: str) -> Any:
    """Return a driver connection as Django would use it, but never one of Django's pool."""
    wrapper = connections[alias].copy()
    wrapper.settings_dict.get("OPTIONS", {}).pop("pool", None)
    wrapper.ensure_connection()
    return wrapper.connection
