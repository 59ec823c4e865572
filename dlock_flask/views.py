"""Views that run under a lock in each request."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from flask import has_request_context, request

from dlock_core.adapters import shown

from .handles import AsyncHandle, Handle
from .keys import KeySource, key_maker
from .state import current_state
from .streams import hold_until_sent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from flask import Flask

    from .settings import Options

__all__ = ["lock_view", "refuse_locks_above_routes"]

F = TypeVar("F", bound="Callable[..., Any]")


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

    return run_async if inspect.iscoroutinefunction(view) else run  # type: ignore[return-value]


def refuse_locks_above_routes(app: Flask, made: Iterable[tuple[Any, Any]]) -> None:
    """Refuse to serve a view whose lock stands above its route, and so around nothing.

    Args:
        app: The application, with all its routes.
        made: Views, each with what `lock_view` has made of it.

    Raises:
        TypeError: There is one.
    """
    endpoints = {id(view): endpoint for endpoint, view in app.view_functions.items()}
    served = {id(inner) for view in app.view_functions.values() for inner in _unwrapped(view)}
    for view, locked in made:
        if id(view) in endpoints and id(locked) not in served:
            raise TypeError(
                f"endpoint {shown(endpoints[id(view)])}: @dlock.locked stands above its route and locks nothing; "
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
