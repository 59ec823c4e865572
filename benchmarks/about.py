"""On what machine, and with which versions, a run was made."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from .contenders import ASYNC, SYNC, reason_to_leave_out

if TYPE_CHECKING:
    from .contenders import AsyncContender, Contender
    from .places import Place

__all__ = ["describe", "find_redis", "what_is_left_out"]

DRIVERS = ("psycopg", "asyncpg", "pymysql", "aiomysql", "asyncmy", "sqlalchemy")
DEFAULT_REDIS = "redis://127.0.0.1:6379/0"


def describe(places: list[Place], redis: str | None) -> dict[str, str]:
    """Return what a reader must know to compare these numbers with others."""
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs{_virtual()}, {psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "servers": ", ".join(place.title for place in places) + (f", Redis {_redis_version(redis)}" if redis else ""),
        "drivers": _versions(DRIVERS),
        "contenders": _versions(tuple(dict.fromkeys(k.distribution for k in (*SYNC, *ASYNC) if k.distribution))),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }
    return {name: text for name, text in about.items() if text}


def _versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {found}" for name in names if (found := _version(name)))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _virtual() -> str:
    """Say when the CPUs are shared with strangers: then figures vary more, and waking up takes longer."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return ""
    return " of a virtual machine" if "hypervisor" in flags else ""


def find_redis() -> str | None:
    """Return the URL of a Redis that answers, None when there is none."""
    url = os.environ.get("DLOCK_BENCH_REDIS_URL", DEFAULT_REDIS)
    try:
        _redis_version(url)
    except Exception:  # not installed, or no server there: both mean none
        return None
    return url


def _redis_version(url: str) -> str:
    import redis  # here, since a run may do without it

    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        return str(client.info("server")["redis_version"])


def what_is_left_out(redis: str | None) -> dict[str, str]:
    """Return the contenders that cannot take part, and why."""
    contenders: list[type[Contender | AsyncContender]] = [*SYNC, *ASYNC]
    reasons = {kind.name: reason_to_leave_out(kind, redis=redis is not None) for kind in contenders}
    return {name: reason for name, reason in reasons.items() if reason}
