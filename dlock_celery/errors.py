"""The error of a task whose lock somebody else holds."""

from __future__ import annotations

from typing import Any

from dlock_core import LockError

__all__ = ["LockConflictError"]


class LockConflictError(LockError):
    """The task did not run, because another run, or another program, holds its key.

    All that it knows is in `args`, so that it is whole after a result backend, by pickle or JSON.

    Attributes:
        key: The key of the lock.
        task: The name of the task that did not run.
        attempts: How many times this message was sent again before.
        holder: Who held it, for people; None if unknown.
    """

    def __init__(
        self, message: str, key: Any = None, task: str | None = None, attempts: int = 1, holder: str | None = None
    ) -> None:
        super().__init__(message, key=key)
        self.args = (message, key, task, attempts, holder)
        self.task = task
        self.attempts = attempts
        self.holder = holder

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args)
