"""One try of one message, or of one direct call, to run a task under its lock."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from .providers import get_provider

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Task
    from celery.app.task import Context

    from dlock_core import Lock, LockProvider

    from .options import Plan

__all__ = ["AGAIN", "DUPLICATE", "Attempt"]

# Headers of a message that was sent again: how often, and that it may be a copy of one whose task still runs.
AGAIN, DUPLICATE = "dlock_attempts", "dlock_duplicate"
# A task may send its own retry while its body still runs; so long does this wait for the body to end.
GRACE = 1.0


class Attempt:
    """What a task's run knows about itself."""

    def __init__(self, task: Task[Any, Any]) -> None:
        app = task.app  # binds the task, if it is not yet
        self.task = task
        plan: Plan = task.lock_plan  # type: ignore[attr-defined]
        self.options = plan.options
        self.key_of = plan.key_of
        self.message = _message(task)
        self.task_id: str | None = self.message.id if self.message else task.request.id
        headers = (self.message.headers if self.message else None) or {}
        self.attempts: int = headers.get(AGAIN, 0)
        self.duplicate: bool = headers.get(DUPLICATE, False)
        self.bypassed = not app.conf.get("dlock_enabled", True) or (
            self.options.direct_calls == "bypass" and _called_directly(task.request_stack.top)
        )

    def __str__(self) -> str:
        return f"{self.task.name}[{self.task_id}]" if self.task_id else str(self.task.name)

    @property
    def redelivered(self) -> bool:
        """Whether the broker gave this message out before: the first delivery may still be running."""
        return self.duplicate or bool(self.message and (self.message.delivery_info or {}).get("redelivered"))

    @property
    def provider(self) -> LockProvider:
        """Where its lock comes from."""
        return get_provider(self.task.app, self.options.bind)

    def lock(self, key: Any, on_lost: Callable[[Lock], None]) -> Lock:
        """Make its lock."""
        return self.provider.lock(key, shared=self.options.shared, fencing=self.options.fencing, on_lost=on_lost)

    @property
    def timeout(self) -> float:
        """How many seconds it waits for its lock."""
        retries = self.message.retries if self.message else 0
        return max(self.options.timeout, GRACE) if retries else self.options.timeout

    def delay(self) -> float:
        """Return the seconds before it is sent again."""
        options = self.options
        longest = min(options.retry_max_delay, options.retry_delay * options.retry_backoff ** min(self.attempts, 100))
        return longest * random.uniform(0.5, 1) if options.retry_jitter else longest  # noqa: S311 - no secret

    def forget_headers(self) -> None:
        """Forget the attempts of this message, now that it has the lock: retries of the task are new messages."""
        if self.message and self.message.headers:
            self.message.headers = {k: v for k, v in self.message.headers.items() if k not in {AGAIN, DUPLICATE}}


def _message(task: Task[Any, Any]) -> Context | None:
    """Return the request of a run that a worker makes for a message; None when called directly or eagerly."""
    request = task.request_stack.top
    return None if _called_directly(request) or request.is_eager else request


def _called_directly(request: Context | None) -> bool:
    # A worker marks a request when it runs the task for it: the next call is one that the body makes.
    return request is None or request.called_directly or bool(vars(request).get("_protected"))
