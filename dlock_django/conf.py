"""Settings: flat `DLOCK_*`, read at each use, so that `override_settings` works."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS

from dlock_core.adapters import EX_TEMPFAIL, PROVIDER_OPTIONS, UNSET, Unset, provider_options

__all__ = ["DEFAULTS", "alias_of", "options_of_providers", "setting", "spelled", "timeout_of"]

DEFAULTS: dict[str, Any] = {
    "DLOCK_DATABASE": DEFAULT_DB_ALIAS,
    "DLOCK_TIMEOUT": 0,
    "DLOCK_CONFLICT_EXIT_CODE": EX_TEMPFAIL,
    "DLOCK_CONFLICT_STATUS": 409,
    "DLOCK_RETRY_AFTER": 1,
    "DLOCK_ENGINE_FACTORY": None,
    **{f"DLOCK_{name.upper()}": default for name, default in PROVIDER_OPTIONS.items()},
}


def spelled(option: str) -> str:
    """Return the name of the setting for an option of providers."""
    return f"DLOCK_{option.upper()}"


def setting(name: str) -> Any:
    """Return a setting's value, or its default."""
    return getattr(settings, name, DEFAULTS[name])


def alias_of(using: str | None) -> str:
    """Return the alias of the database that lends the lock."""
    alias: str = setting("DLOCK_DATABASE") if using is None else using
    return alias


def timeout_of(timeout: float | Unset | None) -> float | None:
    """Return how many seconds to wait."""
    seconds: float | None = setting("DLOCK_TIMEOUT") if timeout is UNSET else timeout
    return seconds


def options_of_providers() -> dict[str, Any]:
    """Return what the settings say about lock providers.

    Raises:
        ValueError: An option cannot be what it is.
    """
    return provider_options(lambda name, _default: setting(name), spelled)
