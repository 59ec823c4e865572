"""`locked("orders:{order_id}")`: a function each of whose calls runs under a fresh lock."""

from __future__ import annotations

import functools
import inspect
import string
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .errors import LockKeyError, UnsupportedError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from .aio import AsyncLock
    from .keys import Key
    from .lock import Lock

__all__ = ["KeySource", "guarded"]

KeySource: TypeAlias = "Key | Callable[..., Any]"
"""A key in whose text `{name}` stands for the function's argument of that name, or a callable that gets the function's
arguments and returns the key."""
F = TypeVar("F", bound="Callable[..., Any]")


def guarded(
    key: Any,
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
        make_key = _key_maker(key, function)
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


def _key_maker(key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what computes the key of one call, after checking that its names exist."""
    if callable(key):
        return key  # type: ignore[no-any-return]
    fields = _fields(key)
    if not fields:
        return lambda *_args, **_kwargs: key
    signature = inspect.signature(function)
    unknown = fields - set(signature.parameters)
    if unknown:
        raise LockKeyError(
            f"key {shown(key)}: {function.__qualname__} has no parameter {', '.join(sorted(unknown))}; "
            f"it has {', '.join(signature.parameters) or 'none'}",
            key=key,
        )

    def from_arguments(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _filled(key, bound.arguments)

    return from_arguments


def _fields(key: Any) -> set[str]:
    """Return the parameter names in the templates of a key."""
    if isinstance(key, tuple):
        return {name for part in key for name in _fields(part)}
    if not isinstance(key, str):
        return set()
    names = (field for _, field, _, _ in string.Formatter().parse(key) if field is not None)
    return {name.partition(".")[0].partition("[")[0] for name in names}


def _filled(key: Any, arguments: dict[str, Any]) -> Any:
    if isinstance(key, tuple):
        return tuple(_filled(part, arguments) for part in key)
    return key.format_map(arguments) if isinstance(key, str) else key
