"""`@single_instance`, under `@app.task` or `@shared_task`.

Celery makes one class for each decorated function. This class gets `SingleInstanceMixin` as its first base when
it is bound to its app, so that the decorator and the base class are one thing: the lock is taken in `__call__`,
outside of what `autoretry_for` makes of the function.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery import Task, current_app
from celery._state import (  # type: ignore[attr-defined]  # what shared_task is made of
    _get_active_apps,  # pyright: ignore[reportAttributeAccessIssue]
    connect_on_app_finalize,
    get_current_task,
)
from celery.local import Proxy

from dlock_core.adapters import shown

from .guard import holding, run_guarded
from .options import NAMES
from .task import SingleInstanceMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from celery import Celery

    from .options import DirectCalls, OnConflict, OnError, OnLost

__all__ = ["single_instance"]

F = TypeVar("F", bound="Callable[..., Any]")
# Where a decorated function carries its options; functools.wraps hands it on.
MARK = "__dlock_options__"


@overload
def single_instance(function: F, /) -> F: ...


@overload
def single_instance(
    *,
    key: Any = None,
    by_args: bool | None = None,
    on_conflict: OnConflict | None = None,
    timeout: float | None = None,
    retry_delay: float | None = None,
    retry_backoff: float | None = None,
    retry_max_delay: float | None = None,
    retry_jitter: bool | None = None,
    retry_limit: int | None = None,
    shared: bool | None = None,
    fencing: bool | None = None,
    bind: str | None = None,
    skip_result: Any = None,
    direct_calls: DirectCalls | None = None,
    on_error: OnError | None = None,
    on_lost: OnLost | None = None,
) -> Callable[[F], F]: ...


def single_instance(
    function: Any = None,
    /,
    *,
    key: Any = None,
    by_args: bool | None = None,
    on_conflict: OnConflict | None = None,
    timeout: float | None = None,
    retry_delay: float | None = None,
    retry_backoff: float | None = None,
    retry_max_delay: float | None = None,
    retry_jitter: bool | None = None,
    retry_limit: int | None = None,
    shared: bool | None = None,
    fencing: bool | None = None,
    bind: str | None = None,
    skip_result: Any = None,
    direct_calls: DirectCalls | None = None,
    on_error: OnError | None = None,
    on_lost: OnLost | None = None,
) -> Any:
    """Let a task run once at a time, wherever its workers are.

    It goes under the decorator that makes the task::

        @app.task
        @single_instance(key="invoice:{customer_id}")
        def send_invoice(customer_id: int) -> None: ...

    What is not given comes from the settings `dlock_*` of the app. All times are seconds.

    Args:
        function: The function, if there is nothing to say: `@single_instance`.
        key: The key; `{name}` stands for the argument of that name. Or a tuple of such, or a callable that gets
            all arguments by name. Default: the task's name.
        by_args: The task's name and all its arguments are the key.
        on_conflict: What becomes of a message whose key is held. "skip": the task succeeds with `skip_result`.
            "retry": it is sent again, with a delay that grows. "wait": it waits for `timeout`, and then fails.
            "raise": it fails with LockConflictError. "revoke": it is revoked, and what follows in its chain or
            chord with it. "reject": the broker gets it back, for its dead-letter queue.
        timeout: How long to wait for the lock, with any `on_conflict`; a worker's slot is occupied meanwhile.
        retry_delay: Before the first time that it is sent again.
        retry_backoff: Each further delay is so many times the last one.
        retry_max_delay: The longest delay.
        retry_jitter: Take half of each delay at random.
        retry_limit: How often it is sent again before it fails with LockConflictError; without, there is no limit.
            The task's own retries and `max_retries` do not count here.
        shared: A reader's lock: readers run at the same time, but not beside the holder of an exclusive lock.
        fencing: Give each run a number that grows, `current_lock().fencing_token`; costs a round trip.
        bind: The name of another database, of `dlock_binds`.
        skip_result: What a skipped task returns; a chain goes on with it.
        direct_calls: Whether `task(…)` takes the lock too ("lock"), or not ("bypass").
        on_error: When the database cannot be asked: "raise", "retry" (send it again), or "run_unlocked".
        on_lost: When the lock is lost while the body runs: "log"; "raise": the task fails with LockLostError when
            its body ends; "terminate": in a prefork worker the body is interrupted by SoftTimeLimitExceeded
            first, elsewhere as "raise".

    Raises:
        TypeError: It is above the decorator that makes the task, or over what is no function. Options that make no
            sense raise Celery's ImproperlyConfigured when the app binds the task.
    """
    options = {name: value for name, value in locals().items() if name != "function" and value is not None}
    if function is None:
        return lambda function: _mark(function, options)
    return _mark(function, options)


def _mark(function: Any, options: dict[str, Any]) -> Any:
    if isinstance(function, Proxy | Task):
        raise TypeError("@single_instance goes under @app.task or @shared_task, next to the function")
    if hasattr(function, MARK):
        raise TypeError("@single_instance twice over one function: a task has one lock; take the other in its body")
    if not callable(function):
        raise TypeError(f"@single_instance decorates a function; give {shown(function)} by name, for example as key=")

    @functools.wraps(function)
    def body(*args: Any, **kwargs: Any) -> Any:
        task = _unguarded(options)
        if task is None:
            return function(*args, **kwargs)
        own = args[1:] if args and args[0] is task else args
        return run_guarded(task, functools.partial(function, *args, **kwargs), own, kwargs)

    # What Celery checks calls against, at the time when they are sent.
    body.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    setattr(body, MARK, options)
    return body


def _unguarded(options: dict[str, Any]) -> Any:
    """Return the task whose function runs now without having come through its guarded `__call__`.

    Called directly before its app is finalized, by `task.run`, or by the `__call__` of a base which does not call
    the one above it.
    """
    now = holding.get()
    if now is not None and _mark_of(now.task) is options:
        return None
    registered = (task for app in (current_app, *_get_active_apps()) for task in list(app._tasks.values()))  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
    for task in (get_current_task(), *registered):
        if task is not None and _mark_of(task) is options:
            _adopt(type(task))
            task.bind(task.app)
            return task
    return None


def _mark_of(task: Any) -> Any:
    return getattr(task.run, MARK, None)


def _adopt(cls: type[Any], annotated: Collection[str] = ()) -> None:
    """Make the class of a marked function, or of a task with options of ours, one of ours.

    What stands on the class itself goes before the decorator.

    Args:
        cls: Of the task.
        annotated: Names of attributes that the app's annotations will give it.
    """
    given = any(f"lock_{name}" in vars(cls) or f"lock_{name}" in annotated for name in NAMES)
    options = getattr(cls.run, MARK, {} if given else None)
    if options is None:
        return
    for name, value in options.items():
        if f"lock_{name}" not in vars(cls):
            setattr(cls, f"lock_{name}", value)
    if not issubclass(cls, SingleInstanceMixin):
        cls.__bases__ = (SingleInstanceMixin, *cls.__bases__)


class _Adoption:
    """Celery asks the annotations of an app about each task, just before the task is bound: this one first."""

    def __init__(self, others: Sequence[Any]) -> None:
        self._others = others

    def annotate(self, task: type[Any]) -> None:
        found = [one.annotate(task) for one in self._others]  # not what they say of "*": those are defaults
        _adopt(task, {name for attributes in found for name in attributes or ()})


@connect_on_app_finalize
def _watch(app: Celery) -> None:
    """Adopt all marked tasks of an app: those that it has, and those to come."""
    app.annotations = [_Adoption(app.annotations), *app.annotations]  # type: ignore[misc, list-item]
    for task in app.tasks.values():
        _adopt(type(task))


for _app in list(_get_active_apps()):
    if _app.finalized:
        _watch(_app)
