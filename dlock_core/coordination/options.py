"""The arguments of a provider, checked at the door."""

from __future__ import annotations

import re
from collections.abc import Callable  # noqa: TC003 - a NamedTuple's field
from typing import Any, NamedTuple

from ..errors import shown
from ..keys import check_prefix
from ..sessions.timeouts import parse_timeout

__all__ = ["Options", "checked"]

MIN_SESSIONS = 2
MIN_SECONDS = 1  # what every server can count


class Options(NamedTuple):
    """The arguments of a provider, checked."""

    prefix: str = ""
    show_keys: bool = True
    allow_unsafe: bool = False
    max_sessions: int = 8
    share_sessions: bool = True
    heartbeat: float | None = 30.0
    lease: float | None = None
    on_lost: Callable[[Any], object] | None = None
    adapter: str = ""


def checked(**given: Any) -> Options:
    """Check the arguments of a provider.

    Raises:
        ValueError: It makes no sense; the message names the option.
    """
    options = Options(**given)
    limit: Any = options.max_sessions
    adapter: Any = options.adapter
    if options.lease is not None and not options.share_sessions:
        raise ValueError("lease with share_sessions=False: a session that waits cannot prove its life; choose one")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < MIN_SESSIONS:
        raise ValueError(f"max_sessions={shown(limit)}: give a number from {MIN_SESSIONS}: one to hold, one to wait")
    if not isinstance(adapter, str) or not re.fullmatch(r"[a-z0-9_.]{0,16}", adapter):
        raise ValueError(f"adapter={shown(adapter)}: give up to 16 of a-z, 0-9, _ and .")
    return options._replace(
        prefix=check_prefix(options.prefix),
        heartbeat=_check_seconds("heartbeat", options.heartbeat),
        lease=_check_seconds("lease", options.lease),
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
