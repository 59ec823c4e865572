"""What we measure ourselves against."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from .base import AsyncContender, AsyncSeat, Contender, Seat
from .files import FileLock
from .ours import Ours, OursAsync
from .pals import PALs
from .pglock import DjangoPglock
from .raw import Raw, RawSQLite
from .raw_async import RawAsync
from .redislocks import PythonRedisLock, RedisPy, RedisPyAsync
from .sadlock import Sadlock, SadlockAsync, SadlockForEver

if TYPE_CHECKING:
    from ..address import Address

__all__ = [
    "ASYNC",
    "RAW",
    "SYNC",
    "AsyncContender",
    "AsyncSeat",
    "Contender",
    "Seat",
    "async_contenders",
    "contenders",
    "reason_to_leave_out",
]

RAW = Raw.name
SYNC: tuple[type[Contender], ...] = (
    Raw,
    RawSQLite,
    Ours,
    Sadlock,
    SadlockForEver,
    PALs,
    DjangoPglock,
    RedisPy,
    PythonRedisLock,
    FileLock,
)
ASYNC: tuple[type[AsyncContender], ...] = (RawAsync, OursAsync, SadlockAsync, RedisPyAsync)


def contenders(address: Address, measure: str) -> list[type[Contender]]:
    """Return those that can take part, the raw driver first."""
    return [kind for kind in SYNC if _fits(kind, address, measure)]


def async_contenders(address: Address, measure: str) -> list[type[AsyncContender]]:
    """Return those that can take part in an event loop, the raw driver first."""
    return [kind for kind in ASYNC if _fits(kind, address, measure)]


def _fits(kind: type[Contender | AsyncContender], address: Address, measure: str) -> bool:
    invited = (kind.only is None or measure in kind.only) and measure not in kind.absent
    return invited and address.kind in kind.kinds and reason_to_leave_out(kind, redis=bool(address.redis)) is None


def reason_to_leave_out(kind: type[Contender | AsyncContender], *, redis: bool) -> str | None:
    """Tell what a contender lacks on this machine, None when nothing."""
    for module in kind.modules:
        if find_spec(module) is None:
            return f"{kind.distribution or module} is not installed"
    return "no Redis answers" if kind.needs_redis and not redis else None
