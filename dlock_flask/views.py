"""Views that run under a lock in each request."""

from __future__ import annotations

import functools
import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from flask import has_request_context, request

from dlock_core.adapters import shown

from .handles import AsyncHandle, Handle
from .keys import KeySource, key_maker
from .state import current_state
from .streams import hold_until_sent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from flask import Flask

    from .settings import Options

__all__ = ["lock_view", "refuse_locks_above_routes"]

F = TypeVar("F", bound="Callable[..., Any]")
# Where a function notes what `locked` has made of it.
LOCKED = "_dlock_locked"


def lock_view(view: F, key: KeySource, options: Options, methods: Collection[str] | None) -> F:
    """Return the view under a lock; a coroutine function stays one, since Flask decides by that."""
    make_key = key_maker(key, view, _route)

    @functools.wraps(view)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _applies(methods):
            return view(*args, **kwargs)
        with Handle(current_state(), make_key(*args, **kwargs), options) as handle:
            return hold_until_sent(view(*args, **kwargs), handle)

    @functools.wraps(view)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        if not _applies(methods):
            return await view(*args, **kwargs)
        async with AsyncHandle(current_state(), make_key(*args, **kwargs), options) as handle:
            return hold_until_sent(await view(*args, **kwargs), handle)

    locked: Any = run_async if inspect.iscoroutinefunction(view) else run
    with suppress(AttributeError):  # a view of another kind than a function takes no notes
        vars(view).setdefault(LOCKED, []).append(locked)
    return locked  # type: ignore[no-any-return]


def refuse_locks_above_routes(app: Flask) -> None:
    """Refuse to serve a view whose lock stands above its route, and so around nothing.

    Raises:
        TypeError: There is one.
    """
    served = list(app.view_functions.items())
    around = {id(inner) for _, view in served for inner in _unwrapped(view)}
    for endpoint, view in served:
        for locked in getattr(view, LOCKED, ()):
            if id(locked) not in around:
                raise TypeError(
                    f"endpoint {shown(endpoint)}: @dlock.locked stands above its route and locks nothing; "
                    "write it below, next to the function"
                )


def _unwrapped(view: Any) -> Iterator[Any]:
    while view is not None:
        yield view
        view = getattr(view, "__wrapped__", None)


def _route() -> str:
    """Return the endpoint of this request."""
    return request.endpoint or request.path


def _applies(methods: Collection[str] | None) -> bool:
    if not has_request_context():
        return True
    return request.method != "OPTIONS" if methods is None else request.method in methods
