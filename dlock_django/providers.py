"""The lock providers of this process: one for each database and set of options, made at first use.

A provider's sessions stay for the next lock, as Django's connections do with CONN_MAX_AGE or a pool.
Without these, which is Django's default, they end when nobody has used them for some seconds; under a
test runner, which drops the database, at once. SQLite's are files, and stay.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from django.core import mail
from django.core.signals import setting_changed
from django.db import connections

from dlock_core import AsyncLock, Lock, LockProvider

from .conf import ProviderOptions, alias_of, provider_options
from .engines import make_engine
from .signals import lock_lost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

__all__ = ["engine_of", "get_engine", "make_provider", "provider"]


# The alias, the database that it leads to at the moment (a test runner changes it), and the options.
_Name: TypeAlias = tuple[str, str, ProviderOptions]

# Seconds; opening a session takes many times as long as a lock on one that is there.
LINGER = 10.0


@dataclass
class _Place:
    provider: LockProvider
    users: int = 0
    left: float = 0.0
    watched: bool = False


@dataclass
class _Registry:
    mutex: threading.RLock = field(default_factory=threading.RLock)
    engines: dict[str, Engine] = field(default_factory=dict)
    places: dict[_Name, _Place] = field(default_factory=dict)


_registry = _Registry()


@contextmanager
def provider(alias: str) -> Iterator[LockProvider]:
    """Lend the provider of a database for the time of the block."""
    name = (alias, str(connections[alias].settings_dict["NAME"]), provider_options())
    with _registry.mutex:
        place = _registry.places.get(name) or _registry.places.setdefault(name, _Place(make_provider(alias)))
        place.users += 1
    try:
        yield place.provider
    finally:
        _leave(name, place)


def _leave(name: _Name, place: _Place) -> None:
    with _registry.mutex:
        place.users -= 1
        place.left = time.monotonic()
        if not _unused(name, place) or _stays(name[0]):
            return
        if not hasattr(mail, "outbox"):  # what a test runner's environment has
            if not place.watched:
                _look_later(name, place, LINGER)
            return
        del _registry.places[name]
    place.provider.close()


def _look_later(name: _Name, place: _Place, seconds: float) -> None:
    place.watched = True
    timer = threading.Timer(seconds, _close_unused, (name, place))
    timer.daemon = True
    timer.start()


def _close_unused(name: _Name, place: _Place) -> None:
    """Close a provider that nobody has used for long, or look again later."""
    with _registry.mutex:
        place.watched = False
        if not _unused(name, place):
            return
        rest = place.left + LINGER - time.monotonic()
        if rest > 0:
            _look_later(name, place, rest)
            return
        del _registry.places[name]
    place.provider.close()


def _unused(name: _Name, place: _Place) -> bool:
    """Tell whether nobody uses a place; one of the parent's in a forked child is not ours to close."""
    return not place.users and _registry.places.get(name) is place


def make_provider(alias: str) -> LockProvider:
    """Make a provider that shares nothing with others, as if it were in another process."""

    def tell(lost: Lock | AsyncLock) -> None:
        lock_lost.send_robust(sender=type(lost), key=lost.key, using=alias, lock=lost)

    return LockProvider(engine_of(alias), adapter="django", on_lost=tell, **provider_options()._asdict())


def engine_of(alias: str) -> Engine:
    """Return the engine of a database: one for each process, which keeps what SQLAlchemy learnt about the server."""
    with _registry.mutex:
        return _registry.engines.get(alias) or _registry.engines.setdefault(alias, make_engine(alias))


def get_engine(using: str | None = None) -> Engine:
    """Return an SQLAlchemy engine whose connections are made as Django makes its own; it pools none.

    For `dlock_core.LockProvider` and whatever else wants one.

    Args:
        using: An alias of DATABASES; default: DLOCK_DATABASE.
    """
    return engine_of(alias_of(using))


def _stays(alias: str) -> bool:
    """Tell whether idle sessions of a database stay open, but for a test runner."""
    if hasattr(mail, "outbox"):
        return False
    configured = connections.settings[alias]
    kept = configured["CONN_MAX_AGE"] != 0 or bool(configured["OPTIONS"].get("pool"))
    return kept or connections[alias].vendor == "sqlite"


def _forget_engines(*, setting: str, **_: object) -> None:
    if setting == "DLOCK_ENGINE_FACTORY":
        with _registry.mutex:
            _registry.engines.clear()


def _start_anew() -> None:
    """Give a forked child maps and a mutex of its own."""
    global _registry  # noqa: PLW0603 - another thread may have held the old one's mutex
    _registry = _Registry()


setting_changed.connect(_forget_engines)
os.register_at_fork(after_in_child=_start_anew)
