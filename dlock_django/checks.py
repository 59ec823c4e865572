"""System checks: what is wrong with the settings before a lock is asked for.

`manage.py check` looks at the settings, `check --deploy` at where they are to be used, and
`check --database ALIAS` asks the server itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's name
from django.db import connections
from django.utils.module_loading import import_string

from dlock_core import LockError, UnsupportedError
from dlock_core.adapters import PROVIDER_OPTIONS, shown, unknown_setting, wrong_options

from .conf import DEFAULTS, setting, spelled
from .providers import make_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["check_database", "check_deployment", "check_settings"]

TAG = "dlock"
PGBOUNCER_PORT = "6432"


def _is_count(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


# What a setting of ours must be; the options of providers are checked by the core.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "DLOCK_TIMEOUT": (lambda value: value is None or _is_seconds(value), "seconds from 0, or None for no limit"),
    "DLOCK_CONFLICT_EXIT_CODE": (lambda value: _is_count(value, 0, 255), "a number from 0 to 255"),
    "DLOCK_CONFLICT_STATUS": (lambda value: _is_count(value, 400, 599), "an HTTP status from 400 to 599"),
    "DLOCK_RETRY_AFTER": (lambda value: value is None or _is_count(value, 0), "whole seconds, or None"),
}


@register(TAG)
def check_settings(**_: Any) -> list[CheckMessage]:
    """Check the settings, without any database."""
    return [*_wrong_values(), *_unknown_names(), *_wrong_factory(), *_wrong_database()]


def _wrong_values() -> Iterator[CheckMessage]:
    complaints = [
        f"{name}={shown(setting(name))}: give {wanted}"
        for name, (fits, wanted) in RULES.items()
        if not fits(setting(name))
    ]
    options = {name: setting(spelled(name)) for name in PROVIDER_OPTIONS}
    for complaint in (*complaints, *wrong_options(options, spelled)):
        yield Error(f"{complaint}.", id="dlock.E003")


def _unknown_names() -> Iterator[CheckMessage]:
    for name in dir(settings):
        if name.startswith("DLOCK_") and name not in DEFAULTS:
            yield Error(unknown_setting(name, DEFAULTS), hint="Correct it, or remove it.", id="dlock.E005")


def _wrong_factory() -> Iterator[CheckMessage]:
    factory = setting("DLOCK_ENGINE_FACTORY")
    try:
        found = import_string(factory) if isinstance(factory, str) else factory
    except ImportError as error:
        yield Error(f"DLOCK_ENGINE_FACTORY = {factory!r}: {error}.", hint="Correct the path.", id="dlock.E004")
        return
    if found is not None and not callable(found):
        yield Error(f"DLOCK_ENGINE_FACTORY = {factory!r} cannot be called.", hint="Name a function.", id="dlock.E004")


def _wrong_database() -> Iterator[CheckMessage]:
    alias = setting("DLOCK_DATABASE")
    if alias not in connections.settings:
        yield Error(
            f"DLOCK_DATABASE = {alias!r} is not in DATABASES.",
            hint=f"Set it to one of {', '.join(map(repr, connections.settings))}.",
            id="dlock.E001",
        )
        return
    if any(_wrong_values()):
        return
    try:
        make_provider(alias).close()
    except (UnsupportedError, TypeError) as error:
        yield Error(str(error), id="dlock.E002")
    except ImportError:
        return  # E004 says it
    except ValueError as error:  # two that do not go together
        yield Error(str(error), hint="Change one of the two.", id="dlock.E003")


@register(TAG, deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """Check what is fine on a laptop only."""
    alias = setting("DLOCK_DATABASE")
    if alias not in connections.settings:
        return []  # E001
    connection = connections[alias]
    if connection.vendor != "sqlite":
        return [*_looks_pooled(alias)]
    if connection.is_in_memory_db():  # type: ignore[attr-defined]
        text = f"DATABASES[{alias!r}] is in memory: its locks are within one process."
        return [Warning(text, hint="Set DLOCK_DATABASE to a server's alias.", id="dlock.W002")]
    text = f"DATABASES[{alias!r}] is SQLite: its locks are within one machine."
    return [Warning(text, hint="With several machines, set DLOCK_DATABASE to a server's alias.", id="dlock.W001")]


def _looks_pooled(alias: str) -> Iterator[CheckMessage]:
    configured = connections.settings[alias]
    if configured.get("DISABLE_SERVER_SIDE_CURSORS") or str(configured["PORT"]) == PGBOUNCER_PORT:
        yield Warning(
            f"DATABASES[{alias!r}] looks like a pooler in transaction mode, where a session's lock protects nothing.",
            hint="Set DLOCK_DATABASE to an alias that reaches the server directly; `check --database` asks the server.",
            id="dlock.W003",
        )


@register(TAG, Tags.database)
def check_database(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Ask the server whether a lock there protects anything."""
    alias = setting("DLOCK_DATABASE")
    if alias not in (databases or ()) or any(issue.is_serious() for issue in check_settings()):
        return []
    try:
        with make_provider(alias) as locks, locks.lock(("dlock_django", "check")):
            return []
    except LockError as error:
        hint = "Set DLOCK_DATABASE to an alias that reaches the server directly."
        return [Warning(f"No locks from DATABASES[{alias!r}]: {error}.", hint=hint, id="dlock.W003")]
