"""Engines made from URLs, with errors that say what to install or to correct."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["async_engine_of", "engine_of"]

# In seconds.
CONNECT_TIMEOUT = 10
PATIENT_DRIVERS = {"psycopg", "psycopg2", "mysqldb", "aiomysql"}

# What to install for each driver that locks are tested with, by SQLAlchemy's name of the driver.
PACKAGES = {
    "postgresql": {"psycopg": "dlock-suite[postgresql]", "psycopg2": "psycopg2-binary", "asyncpg": "asyncpg"},
    "mysql": {
        "pymysql": "dlock-suite[mysql]",
        "mysqldb": "mysqlclient",
        "aiomysql": "aiomysql",
        "asyncmy": "asyncmy",
    },
    "mssql": {"pyodbc": "dlock-suite[mssql]", "pymssql": "pymssql", "aioodbc": "aioodbc"},
    "oracle": {"oracledb": "dlock-suite[oracle]"},
    "sqlite": {"aiosqlite": "dlock-suite[sqlite-async]"},
}


def engine_of(engine_or_url: Engine | URL | str) -> Engine:
    """Return an engine, made if it is a URL.

    Raises:
        UnsupportedError: Its driver is async, or not installed.
        ValueError: The URL is none.
        TypeError: It is neither.
    """
    engine = engine_or_url if isinstance(engine_or_url, Engine) else _make(create_engine, engine_or_url)
    if engine.dialect.is_async:
        raise UnsupportedError(f"the driver {engine.driver} is async: use AsyncLockProvider")
    return engine


def async_engine_of(engine_or_url: AsyncEngine | URL | str) -> AsyncEngine:
    """Return an async engine, made if it is a URL; see `engine_of`."""
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine  # the ORM: it costs as much as all the rest

    if isinstance(engine_or_url, AsyncEngine):
        return engine_or_url
    try:
        return _make(create_async_engine, engine_or_url)  # type: ignore[no-any-return]
    except InvalidRequestError as error:
        raise UnsupportedError(
            f"the driver of {make_url(engine_or_url).drivername} is not async: use LockProvider and its alock()"
        ) from error


def _make(create: Callable[..., Any], given: object) -> Any:
    if not isinstance(given, str | URL):
        raise TypeError(
            f"{type(given).__name__} is neither an SQLAlchemy engine nor a URL, or of the other kind (async)"
        )
    try:
        url = make_url(given)
        return create(url, **_engine_options(url))
    except (NoSuchModuleError, ImportError) as error:
        raise UnsupportedError(f"{make_url(given).drivername}: {error}. {_what_to_do(make_url(given))}") from error
    except ArgumentError as error:
        raise ValueError(
            f"not a database URL; give one like postgresql+psycopg://user@host/database ({error})"
        ) from error


def _what_to_do(url: URL) -> str:
    backend, _, driver = url.drivername.partition("+")
    packages = PACKAGES.get("mysql" if backend == "mariadb" else backend)
    if packages is None:
        meant = "it is written postgresql+psycopg://" if backend == "postgres" else "e.g. postgresql+psycopg://"
        return f"Correct the URL; {meant}"
    try:
        driver = url.get_driver_name()
    except NoSuchModuleError:
        driver = ""
    package = packages.get(driver.removesuffix("_async"))
    if package is None:
        return f"Correct the URL; drivers for locks are {', '.join(f'{backend}+{one}' for one in packages)}"
    return f"Install the driver, for example with pip install '{package}', or correct the URL"


def _engine_options(url: URL) -> dict[str, Any]:
    """Return what an engine needs that serves nothing but locks.

    These drivers wait without limit for a server that does not answer; nothing should.
    SQLAlchemy asks SQL Server some questions at first; one that Babelfish does not know would end
    the transaction, and with it pymssql's patience.
    """
    if url.get_backend_name() == "mssql":
        return {"isolation_level": "AUTOCOMMIT"}
    patient = url.get_driver_name() in PATIENT_DRIVERS
    if patient and "connect_timeout" not in url.query and "PGCONNECT_TIMEOUT" not in os.environ:
        return {"connect_args": {"connect_timeout": CONNECT_TIMEOUT}}
    return {}
