"""What `lock(...)` returns: for `with`, or over a function, each of whose calls then has a lock of its own."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asgiref.sync import iscoroutinefunction

from dlock_core import LockStateError, UnsupportedError, key_maker

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from .keys import KeySource

__all__ = ["AsyncBlock", "AsyncLockBlock", "Block", "LockBlock"]

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound="Callable[..., Any]")


class _BaseBlock:
    """One use at a time: a block that several threads enter would mix up their locks."""

    def __init__(self, open_: Callable[[Any], Any], key: KeySource) -> None:
        self._open = open_
        self._key = key
        self._in_use = threading.Lock()

    def _begin(self) -> Any:
        if not self._in_use.acquire(blocking=False):
            raise LockStateError(f"key {self._key!r}: this object is in use; make one for each `with`", key=self._key)
        return self._open(self._key)


class Block(_BaseBlock, Generic[T_co]):
    """What `try_lock` returns, for one `with`."""

    _block: AbstractContextManager[T_co]

    def __enter__(self) -> T_co:
        self._block = self._begin()
        try:
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
        """
        if iscoroutinefunction(function):
            raise UnsupportedError(f"{function.__qualname__} is async: put `alock` over it")
        _refuse_generator(function)
        key_of = key_maker(self._key, function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._open(key_of(*args, **kwargs)):
                return function(*args, **kwargs)

        return run  # type: ignore[return-value]


class AsyncBlock(_BaseBlock, Generic[T_co]):
    """What `atry_lock` returns, for one `async with`."""

    _block: AbstractAsyncContextManager[T_co]

    async def __aenter__(self) -> T_co:
        self._block = self._begin()
        try:
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
            UnsupportedError: The function is not async.
            LockKeyError: The function has no such argument.
        """
        if not iscoroutinefunction(function):
            raise UnsupportedError(f"{function.__qualname__} is not async: put `lock` over it")
        key_of = key_maker(self._key, function)

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            async with self._open(key_of(*args, **kwargs)):
                return await function(*args, **kwargs)

        return run  # type: ignore[return-value]


def _refuse_generator(function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UnsupportedError(f"{function.__qualname__} is a generator: take the lock inside it")
