"""The configuration, `DLOCK_*`, read once when the extension is initialised; and how a lock is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from dlock_core.adapters import PROVIDER_OPTIONS, UNSET, Unset, provider_options, shown, unknown_setting

from .conflict import check_retry_after, check_status

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["OnConflict", "Options", "Settings", "read_settings"]

DEFAULTS: dict[str, Any] = {
    "DLOCK_URL": None,
    "DLOCK_ENGINE_OPTIONS": {},
    "DLOCK_BIND_KEY": None,
    "DLOCK_TIMEOUT": 0,
    "DLOCK_CONFLICT_STATUS": 409,
    "DLOCK_RETRY_AFTER": 1,
    "DLOCK_MAX_WAITERS": None,
    **{f"DLOCK_{name.upper()}": default for name, default in PROVIDER_OPTIONS.items()},
}


class Settings(NamedTuple):
    """What one application's configuration says."""

    url: Any
    engine_options: dict[str, Any]
    bind_key: str | None
    timeout: float | None
    conflict_status: int
    retry_after: int | None
    max_waiters: int | None
    provider: dict[str, Any]


def read_settings(app: Flask, *, prefix: str | None) -> Settings:
    """Fill the configuration up with the defaults, and check what would fail only in a conflict.

    Raises:
        ValueError: An option cannot be what it is.
    """
    for name in app.config:
        if name.startswith("DLOCK_") and name not in DEFAULTS:
            raise ValueError(unknown_setting(name, DEFAULTS))
    for name, default in {**DEFAULTS, **({} if prefix is None else {"DLOCK_PREFIX": prefix})}.items():
        app.config.setdefault(name, default)
    own = {name: app.config[_spelled(name)] for name in Settings._fields if name != "provider"}
    settings = Settings(**own, provider=provider_options(app.config.get, _spelled))
    check_status(settings.conflict_status, "DLOCK_CONFLICT_STATUS")
    check_retry_after(settings.retry_after, "DLOCK_RETRY_AFTER")
    _check_max_waiters(settings.max_waiters)
    return settings


def _spelled(name: str) -> str:
    return f"DLOCK_{name.upper()}"


def _check_max_waiters(limit: object) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"DLOCK_MAX_WAITERS={shown(limit)}: give a number, or None for no limit")


OnConflict: TypeAlias = Literal["abort", "raise"]
"""Whether a conflict is an HTTP answer, or LockTimeoutError."""


@dataclass(frozen=True)
class Options:
    """How a lock was asked for.

    Raises:
        ValueError: An option cannot be what it is.
    """

    timeout: float | Unset | None = UNSET
    shared: bool = False
    fencing: bool = False
    bind: str | None = None
    reentrant: bool = False
    on_conflict: OnConflict | Literal["skip"] = "abort"
    status: int | None = None
    retry_after: int | Unset | None = UNSET

    def __post_init__(self) -> None:
        if self.on_conflict not in {"abort", "raise", "skip"}:
            raise ValueError(f"on_conflict={shown(self.on_conflict)}: give 'abort' (an HTTP answer) or 'raise'")
        if self.status is not None:
            check_status(self.status, "status")
        if self.retry_after is not UNSET:
            check_retry_after(self.retry_after, "retry_after")
