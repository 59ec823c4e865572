"""`locked("orders:{order_id}")`: a function each of whose calls runs under a fresh lock."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UnsupportedError
from .templates import key_maker

if TYPE_CHECKING:
    from collections.abc import Callable

    from .aio import AsyncLock
    from .lock import Lock
    from .templates import KeySource

__all__ = ["guarded"]

F = TypeVar("F", bound="Callable[..., Any]")


def guarded(
    key: KeySource,
    timeout: float | None,
    shared: bool,
    *,
    lock: Callable[..., Lock] | None,
    alock: Callable[..., AsyncLock],
) -> Callable[[F], F]:
    """Return the decorator."""

    def decorate(function: F) -> F:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UnsupportedError(
                f"{function.__qualname__} is a generator: the lock would be released before its body runs; "
                "take the lock inside it"
            )
        make_key = key_maker(key, function)
        if inspect.iscoroutinefunction(function):
            return _guard_async(function, make_key, functools.partial(alock, timeout=timeout, shared=shared))
        if lock is None:
            raise UnsupportedError(f"{function.__qualname__} is not async: use LockProvider for it")
        return _guard(function, make_key, functools.partial(lock, timeout=timeout, shared=shared))

    return decorate


def _guard(function: F, make_key: Callable[..., Any], lock: Callable[[Any], Lock]) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with lock(make_key(*args, **kwargs)):
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def _guard_async(function: F, make_key: Callable[..., Any], lock: Callable[[Any], AsyncLock]) -> F:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        async with lock(make_key(*args, **kwargs)):
            return await function(*args, **kwargs)

    return run  # type: ignore[return-value]
