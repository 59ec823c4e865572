"""The configuration: `DLOCK_*`, read once, when the extension is initialised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .conflict import check_retry_after, check_status

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["Settings", "read_settings"]

DEFAULTS: dict[str, Any] = {
    "DLOCK_URL": None,
    "DLOCK_ENGINE_OPTIONS": {},
    "DLOCK_BIND_KEY": None,
    "DLOCK_PREFIX": "",
    "DLOCK_TIMEOUT": 0,
    "DLOCK_CONFLICT_STATUS": 409,
    "DLOCK_RETRY_AFTER": None,
    "DLOCK_MAX_WAITERS": None,
    "DLOCK_MAX_SESSIONS": 8,
    "DLOCK_HEARTBEAT": 30.0,
    "DLOCK_LEASE": None,
}


@dataclass(frozen=True)
class Settings:
    """What one application's configuration says."""

    url: Any
    engine_options: dict[str, Any]
    bind_key: str | None
    prefix: str
    timeout: float | None
    conflict_status: int
    retry_after: int | None
    max_waiters: int | None
    max_sessions: int
    heartbeat: float | None
    lease: float | None


def read_settings(app: Flask, *, prefix: str | None) -> Settings:
    """Fill the configuration up with the defaults, and check what would fail only in a conflict.

    Raises:
        ValueError: An option cannot be what it is.
    """
    for name, default in DEFAULTS.items():
        app.config.setdefault(name, prefix if name == "DLOCK_PREFIX" and prefix is not None else default)
    settings = Settings(**{name.removeprefix("DLOCK_").lower(): app.config[name] for name in DEFAULTS})
    check_status(settings.conflict_status, "DLOCK_CONFLICT_STATUS")
    check_retry_after(settings.retry_after, "DLOCK_RETRY_AFTER")
    _check_max_waiters(settings.max_waiters)
    return settings


def _check_max_waiters(limit: object) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"DLOCK_MAX_WAITERS={limit!r}: give a number, or None for no limit")
