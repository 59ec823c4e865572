"""What a provider is told, checked at the door."""

from __future__ import annotations

import re
from collections.abc import Callable  # noqa: TC003 - a NamedTuple's field
from typing import Any, NamedTuple

from .errors import shown
from .keys import check_prefix
from .timeouts import parse_timeout

__all__ = ["Options", "checked"]

MIN_SESSIONS = 2
MIN_SECONDS = 1  # what every server can count


class Options(NamedTuple):
    """What a provider was told, checked."""

    prefix: str = ""
    show_keys: bool = True
    unsafe_ok: bool = False
    max_sessions: int = 8
    share_sessions: bool = True
    heartbeat: float | None = 30.0
    lease: float | None = None
    on_lost: Callable[[Any], object] | None = None
    adapter: str = ""


def checked(
    *,
    prefix: str,
    heartbeat: float | None,
    lease: float | None,
    max_sessions: int,
    share_sessions: bool,
    adapter: str,
    **rest: Any,
) -> Options:
    """Check what a provider was told.

    Raises:
        ValueError: It makes no sense; the message names the option.
    """
    if lease is not None and not share_sessions:
        raise ValueError("lease with share_sessions=False: a session that waits cannot prove its life; choose one")
    return Options(
        prefix=check_prefix(prefix),
        heartbeat=_check_seconds("heartbeat", heartbeat),
        lease=_check_seconds("lease", lease),
        max_sessions=_check_limit(max_sessions),
        share_sessions=share_sessions,
        adapter=_check_adapter(adapter),
        **rest,
    )


def _check_seconds(name: str, value: object) -> float | None:
    seconds: float | None
    try:
        seconds = parse_timeout(value)
    except ValueError:
        seconds = 0.0
    if seconds is not None and seconds < MIN_SECONDS:
        raise ValueError(f"{name}={shown(value)}: give seconds, {MIN_SECONDS} or more, or None for none")
    return seconds


def _check_limit(max_sessions: object) -> int:
    if isinstance(max_sessions, bool) or not isinstance(max_sessions, int) or max_sessions < MIN_SESSIONS:
        raise ValueError(
            f"max_sessions={shown(max_sessions)}: give a number from {MIN_SESSIONS}: one to hold, one to wait"
        )
    return max_sessions


def _check_adapter(adapter: object) -> str:
    if not isinstance(adapter, str) or not re.fullmatch(r"[a-z0-9_.]{0,16}", adapter):
        raise ValueError(f"adapter={shown(adapter)}: give up to 16 of a-z, 0-9, _ and .")
    return adapter
