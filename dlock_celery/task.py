"""Task classes whose body runs under a lock."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task

from .guard import run_guarded
from .options import DirectCalls, OnConflict, OnError, OnLost, Plan, plan_for

if TYPE_CHECKING:
    from celery import Celery

    AnyTask = Task[Any, Any]
else:
    AnyTask = Task  # Celery 5.5 knows no parameters

__all__ = ["SingleInstanceMixin", "SingleInstanceTask"]


class SingleInstanceMixin:
    """Let the tasks of a class run once at a time: `class Base(SingleInstanceMixin, DjangoTask)`.

    The attributes are the options of `single_instance`; None means what the app's settings say. They can be given
    to `@app.task(base=…, lock_key="{customer_id}")`, and by the setting `task_annotations`.
    """

    lock_key: ClassVar[Any] = None
    lock_by_args: ClassVar[bool | None] = None
    lock_on_conflict: ClassVar[OnConflict | None] = None
    lock_timeout: ClassVar[float | None] = None
    lock_retry_delay: ClassVar[float | None] = None
    lock_retry_backoff: ClassVar[float | None] = None
    lock_retry_max_delay: ClassVar[float | None] = None
    lock_retry_jitter: ClassVar[bool | None] = None
    lock_retry_limit: ClassVar[int | None] = None
    lock_shared: ClassVar[bool | None] = None
    lock_fencing: ClassVar[bool | None] = None
    lock_bind: ClassVar[str | None] = None
    lock_skip_result: ClassVar[Any] = None
    lock_direct_calls: ClassVar[DirectCalls | None] = None
    lock_on_error: ClassVar[OnError | None] = None
    lock_on_lost: ClassVar[OnLost | None] = None

    lock_plan: ClassVar[Plan]

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options.

        Raises:
            ImproperlyConfigured: They make no sense.
        """
        cls.lock_plan = plan_for(cls, app)  # type: ignore[arg-type]
        super().on_bound(app)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body under the lock."""
        body = functools.partial(super().__call__, *args, **kwargs)  # type: ignore[misc]
        return run_guarded(self, body, args, kwargs)  # type: ignore[arg-type]


class SingleInstanceTask(SingleInstanceMixin, AnyTask):
    """A base class for tasks: `@app.task(base=SingleInstanceTask, lock_key="invoice:{customer_id}")`."""

    abstract = True
