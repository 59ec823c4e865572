"""What was said about a task's lock: on the task, as `lock_*`, else by the app's settings, as `dlock_*`."""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from celery.exceptions import ImproperlyConfigured

from dlock_core import UnsupportedError
from dlock_core.adapters import refuse_async, shown, unknown_setting

from .keys import KeyMaker, signature_of
from .providers import SETTINGS

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["DirectCalls", "OnConflict", "OnError", "OnLost", "Options", "Plan", "plan_for"]

OnConflict: TypeAlias = Literal["skip", "retry", "wait", "raise", "revoke", "reject"]
"""What becomes of a message whose key is held; see `single_instance`."""
OnError: TypeAlias = Literal["raise", "retry", "run_unlocked"]
"""What becomes of it when the database cannot be asked."""
OnLost: TypeAlias = Literal["log", "raise", "terminate"]
"""What happens when the lock is lost while the body runs."""
DirectCalls: TypeAlias = Literal["lock", "bypass"]
"""Whether `task(…)` takes the lock too."""

CHOICES = {
    "on_conflict": get_args(OnConflict),
    "on_error": get_args(OnError),
    "on_lost": get_args(OnLost),
    "direct_calls": get_args(DirectCalls),
}
# These belong to one task; an app has no setting for them.
TASK_ONLY = frozenset({"key", "by_args", "shared", "fencing", "bind", "skip_result"})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one task, with their defaults."""

    key: Any = None
    by_args: bool = False
    on_conflict: OnConflict = "skip"
    timeout: float = 0.0
    retry_delay: float = 5.0
    retry_backoff: float = 2.0
    retry_max_delay: float = 300.0
    retry_jitter: bool = True
    retry_limit: int | None = None
    shared: bool = False
    fencing: bool = False
    bind: str | None = None
    skip_result: Any = None
    direct_calls: DirectCalls = "lock"
    on_error: OnError = "raise"
    on_lost: OnLost = "log"


NAMES = tuple(field.name for field in fields(Options))
# All that an app can set; each name goes behind `dlock_`.
APP_SETTINGS = (*SETTINGS, "enabled", "send_events", *(name for name in NAMES if name not in TASK_ONLY))


@dataclass(frozen=True)
class Plan:
    """All that is known about a task's lock before it runs."""

    options: Options
    key_of: KeyMaker


def plan_for(cls: type[Task[Any, Any]], app: Celery) -> Plan:
    """Read and check what was said about a task.

    Raises:
        ImproperlyConfigured: It makes no sense; the message names the task and the option.
    """
    _refuse_unknown(app)
    try:
        _refuse_misspelt(cls)
        options = Options(**_said(cls, app))
        _check(options, cls)
        key_of = KeyMaker(str(cls.name), options.key, by_args=options.by_args, signature=signature_of(cls))
    except ImproperlyConfigured as error:
        raise ImproperlyConfigured(f"the lock of task {cls.name}: {error}") from error
    return Plan(options, key_of)


def _said(cls: type[Task[Any, Any]], app: Celery) -> dict[str, Any]:
    """Collect the options that were given; None is nothing."""
    said = {}
    for name in NAMES:
        value = getattr(cls, f"lock_{name}", None)
        if value is None and name not in TASK_ONLY:
            value = app.conf.get(f"dlock_{name}")
        if value is not None:
            said[name] = value
    return said


def _refuse_unknown(app: Celery) -> None:
    """Refuse a setting `dlock_*` that nothing reads; Django's may be upper case, and have the app's namespace."""
    namespace: str | None = getattr(app, "namespace", None)
    prefix = f"{namespace}_" if namespace else ""
    known = [f"dlock_{name}" for name in APP_SETTINGS]
    for written in app.conf:
        name = str(written).removeprefix(prefix).lower()
        if name.startswith("dlock_") and name not in known:
            raise ImproperlyConfigured(unknown_setting(name, known))


def _refuse_misspelt(cls: type[Task[Any, Any]]) -> None:
    """Refuse an attribute `lock_*` that is nearly one of ours; others may be the application's own."""
    known = [f"lock_{name}" for name in NAMES]
    for name in dir(cls):
        near = difflib.get_close_matches(name, known, 1, 0.8)
        if name.startswith("lock_") and name not in {*known, "lock_plan"} and near:
            raise ImproperlyConfigured(f"there is no option {name}: did you mean {near[0]}?")


def _check(options: Options, cls: type[Task[Any, Any]]) -> None:
    run = inspect.unwrap(cls.run)
    try:
        refuse_async(run, "Celery does not await its body")
    except UnsupportedError as error:
        raise ImproperlyConfigured(f"it must be a plain function: {error}") from error
    for name, choices in CHOICES.items():
        if getattr(options, name) not in choices:
            raise ImproperlyConfigured(f"{name}={shown(getattr(options, name))}: give one of {', '.join(choices)}")
    for name in ("timeout", "retry_delay", "retry_max_delay", "retry_backoff"):
        _check_number(name, getattr(options, name))
    if options.on_conflict == "wait" and not options.timeout:
        raise ImproperlyConfigured("on_conflict='wait' needs a timeout: a waiting task occupies its worker")
    if options.on_conflict == "reject" and not cls.acks_late:
        raise ImproperlyConfigured(
            "on_conflict='reject' needs acks_late=True: without it the broker drops the message before it runs"
        )


def _check_number(name: str, value: Any) -> None:
    least = 1 if name == "retry_backoff" else 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= cast("float", value) < math.inf:
        raise ImproperlyConfigured(f"{name}={shown(value)}: give a finite number from {least}")
