"""Engines made from URLs, with errors that say what to install or to correct."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["async_engine_of", "engine_of"]

# In seconds.
CONNECT_TIMEOUT = 10
PATIENT_DRIVERS = {"psycopg", "psycopg2", "mysqldb", "aiomysql"}


def engine_of(engine_or_url: Engine | URL | str) -> Engine:
    """Return an engine, made if it is a URL.

    Raises:
        UnsupportedError: Its driver is async, or not installed.
        ValueError: The URL is none.
        TypeError: It is neither.
    """
    engine = engine_or_url if isinstance(engine_or_url, Engine) else _make(_create_engine, engine_or_url)
    if engine.dialect.is_async:
        raise UnsupportedError(f"the driver {engine.driver} is async: use AsyncLockProvider")
    return engine


def async_engine_of(engine_or_url: AsyncEngine | URL | str) -> AsyncEngine:
    """Return an async engine, made if it is a URL; see `engine_of`."""
    if isinstance(engine_or_url, AsyncEngine):
        return engine_or_url
    return _make(_create_async_engine, engine_or_url)  # type: ignore[no-any-return]


def _make(factory: Callable[[URL], Any], url: object) -> Any:
    if not isinstance(url, str | URL):
        raise TypeError(f"{type(url).__name__} is neither an SQLAlchemy engine nor a URL, or of the other kind (async)")
    try:
        return factory(make_url(url))
    except (NoSuchModuleError, ImportError) as error:
        drivername = make_url(url).drivername
        raise UnsupportedError(
            f"{drivername}: {error}. Install the driver, for example with "
            f"pip install 'dlock-suite[{drivername.partition('+')[0]}]', or correct the URL"
        ) from error
    except ArgumentError as error:
        raise ValueError(
            f"not a database URL; give one like postgresql+psycopg://user@host/database ({error})"
        ) from error


def _create_engine(url: URL) -> Engine:
    return create_engine(url, **_engine_options(url))


def _engine_options(url: URL) -> dict[str, Any]:
    """Return what an engine needs that serves nothing but locks.

    Nobody should wait for ever for a server that does not answer, as these drivers do.
    SQLAlchemy asks SQL Server some questions at first; one that Babelfish does not know would end
    the transaction, and with it pymssql's patience.
    """
    if url.get_backend_name() == "mssql":
        return {"isolation_level": "AUTOCOMMIT"}
    patient = url.get_driver_name() in PATIENT_DRIVERS
    if patient and "connect_timeout" not in url.query and "PGCONNECT_TIMEOUT" not in os.environ:
        return {"connect_args": {"connect_timeout": CONNECT_TIMEOUT}}
    return {}


def _create_async_engine(url: URL) -> AsyncEngine:
    try:
        return create_async_engine(url, **_engine_options(url))
    except Exception as error:
        if type(error).__name__ != "InvalidRequestError":
            raise
        raise UnsupportedError(
            f"the driver of {url.drivername} is not async: use LockProvider and its alock()"
        ) from error
