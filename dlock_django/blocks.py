"""What `lock(…)` returns: for `with`, or over a function, where each call has a lock of its own."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from dlock_core import LockStateError, UnsupportedError
from dlock_core.adapters import is_async, key_maker, refuse_async, refuse_generator, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from dlock_core.adapters import KeySource

__all__ = ["AsyncBlock", "AsyncLockBlock", "Block", "LockBlock", "OnConflict"]

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound="Callable[..., Any]")
log = logging.getLogger("dlock.django")
OnConflict: TypeAlias = Literal["raise", "skip"]
"""What the call of a decorated function does when its lock is not free in time."""


class _BaseBlock:
    """One use at a time: a block that several threads enter would mix up their locks."""

    def __init__(self, open_: Callable[[Any], Any], key: KeySource, on_conflict: OnConflict = "raise") -> None:
        if on_conflict not in {"raise", "skip"}:
            raise ValueError(f"on_conflict={shown(on_conflict)}: give 'raise' or 'skip'")
        self._open = open_
        self._key = key
        self._skips = on_conflict == "skip"
        self._in_use = threading.Lock()

    def __bool__(self) -> bool:
        raise LockStateError(
            f"key {shown(self._key)}: not asked for yet; use `with`, and what it gives after `as`", key=self._key
        )

    def _begin(self) -> None:
        if self._skips:
            raise ValueError("on_conflict='skip' is for decorated functions; for a block use try_lock or atry_lock")
        if not self._in_use.acquire(blocking=False):
            raise LockStateError(
                f"key {shown(self._key)}: this object is in use; make one for each `with`", key=self._key
            )


class Block(_BaseBlock, Generic[T_co]):
    """What `try_lock` returns, for one `with`."""

    _block: AbstractContextManager[T_co]

    def __enter__(self) -> T_co:
        self._begin()
        try:
            self._block = self._open(self._key)  # which refuses an event loop
            return self._block.__enter__()
        except BaseException:
            self._in_use.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return self._block.__exit__(kind, error, traceback)
        finally:
            self._in_use.release()


class LockBlock(Block[T_co]):
    """What `lock` and `locked_atomic` return, for one `with` or over a function."""

    def __call__(self, function: F) -> F:
        """Run each call of a function under a lock of its own.

        Raises:
            UnsupportedError: The function is async, or a generator: the lock would be free before its body runs.
            LockKeyError: The function has no such argument.
            TypeError: It is no function, as happens to `@lock` without a key.
        """
        _refuse_no_function(function)
        refuse_async(function, "put `alock` over it")
        key_of = key_maker(self._key, function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            key = key_of(*args, **kwargs)
            with self._open(key) as held:
                return _skipped(key, function) if held is None else function(*args, **kwargs)

        return run  # type: ignore[return-value]


class AsyncBlock(_BaseBlock, Generic[T_co]):
    """What `atry_lock` returns, for one `async with`."""

    _block: AbstractAsyncContextManager[T_co]

    async def __aenter__(self) -> T_co:
        self._begin()
        try:
            self._block = self._open(self._key)
            return await self._block.__aenter__()
        except BaseException:
            self._in_use.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._block.__aexit__(kind, error, traceback)
        finally:
            self._in_use.release()


class AsyncLockBlock(AsyncBlock[T_co]):
    """What `alock` returns, for one `async with` or over an async function."""

    def __call__(self, function: F) -> F:
        """Run each call of an async function under a lock of its own.

        Raises:
            UnsupportedError: The function is not async, or a generator.
            LockKeyError: The function has no such argument.
            TypeError: It is no function, as happens to `@alock` without a key.
        """
        _refuse_no_function(function)
        refuse_generator(function)
        if not is_async(function):
            raise UnsupportedError(f"{function.__qualname__} is not async: put `lock` over it")
        key_of = key_maker(self._key, function)

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            key = key_of(*args, **kwargs)
            async with self._open(key) as held:
                return _skipped(key, function) if held is None else await function(*args, **kwargs)

        return run  # type: ignore[return-value]


def _refuse_no_function(function: object) -> None:
    if not callable(function):
        raise TypeError(f'{shown(function)} is no function to decorate: give the decorator a key, as in @lock("key")')


def _skipped(key: object, function: Callable[..., Any]) -> None:
    log.info("key %s: held elsewhere; %s skipped", shown(key), function.__qualname__)
