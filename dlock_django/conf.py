"""Settings: flat `DLOCK_*`, read at each use, so that `override_settings` works."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS

__all__ = ["DEFAULTS", "UNSET", "ProviderOptions", "Unset", "alias_of", "provider_options", "setting", "timeout_of"]


class _Unset(Enum):
    UNSET = "what the settings say"

    def __repr__(self) -> str:
        return "<what the settings say>"


UNSET: Final = _Unset.UNSET
Unset: TypeAlias = Literal[_Unset.UNSET]

DEFAULTS: dict[str, Any] = {
    "DLOCK_DATABASE": DEFAULT_DB_ALIAS,
    "DLOCK_PREFIX": "",
    "DLOCK_TIMEOUT": 0,
    "DLOCK_CONFLICT_EXIT_CODE": 75,  # EX_TEMPFAIL of sysexits.h
    "DLOCK_CONFLICT_STATUS": 409,
    "DLOCK_RETRY_AFTER": 1,
    "DLOCK_ENGINE_FACTORY": None,
    "DLOCK_HEARTBEAT": 30.0,
    "DLOCK_LEASE": None,
    "DLOCK_MAX_SESSIONS": 8,
    "DLOCK_SHOW_KEYS": True,
    "DLOCK_UNSAFE_OK": False,
}


class ProviderOptions(NamedTuple):
    """What a lock provider is made with."""

    prefix: str
    heartbeat: float | None
    lease: float | None
    max_sessions: int
    show_keys: bool
    unsafe_ok: bool


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


def provider_options() -> ProviderOptions:
    """Return what the settings say about lock providers."""
    return ProviderOptions(*(setting(f"DLOCK_{field.upper()}") for field in ProviderOptions._fields))
