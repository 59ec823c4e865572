"""`lock_view`: one request at a time for a key; the others get 409 at once, or wait."""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from django.db import connections, transaction
from django.http import HttpResponse
from django.utils.translation import gettext

from dlock_core.adapters import UNSET, KeyTemplate, Unset, is_async, shown

from .conf import setting
from .locks import Wish, ataking, atrying, taking, trying

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from dlock_core import AsyncLock, Lock
    from dlock_core.adapters import Key, KeySource

__all__ = ["lock_view"]

V = TypeVar("V", bound="Callable[..., Any]")
OnConflict: TypeAlias = "Literal['abort', 'raise'] | Callable[..., HttpResponseBase]"
"""The answer to a request that finds the lock held; see `lock_view`."""


def lock_view(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    methods: Collection[str] | None = None,
    on_conflict: OnConflict = "abort",
    status: int | None = None,
    retry_after: int | Unset | None = UNSET,
) -> Callable[[V], V]:
    """Decorate a view, sync or async: its body runs under a lock; a request that finds it held is answered 409.

    The answer carries `Retry-After` and says nothing about the key. Under ATOMIC_REQUESTS the lock is taken
    before the transaction begins and released after it has committed. A streamed body is sent after the
    release. For class-based views use `method_decorator` with `name="dispatch"`, or on an async handler.

    Args:
        key: As for `lock`; in text, `{name}` stands for what the URL captured under that name. Or a callable
            that gets the request and what the URL captured, and returns the key.
        using: The alias of the database that lends the lock; default: DLOCK_DATABASE.
        timeout: Seconds to wait; 0 tries once, None is no limit. Default: DLOCK_TIMEOUT, which is 0.
        shared: Share it with others that ask for it shared (readers); exclusive otherwise.
        methods: The HTTP methods to lock; default: all.
        on_conflict: "abort" answers with `status`; "raise" raises LockTimeoutError, for a middleware or an exception
            handler; a callable gets what the view would get, and returns the response.
        status: Of the answer; default: DLOCK_CONFLICT_STATUS, which is 409.
        retry_after: Whole seconds of the header, None for no header; default: DLOCK_RETRY_AFTER, which is 1.

    Raises:
        TypeError: What is decorated is no function, as happens to `@lock_view` without a key.
        ValueError: There is no such on_conflict.
    """
    if on_conflict not in ("abort", "raise") and not callable(on_conflict):
        raise ValueError(f"on_conflict={shown(on_conflict)}: give 'abort', 'raise' or a callable")
    wish, key_of = Wish(using, timeout, shared), key if callable(key) else _filled_from_url(key)
    raises = on_conflict == "raise"
    conflict = on_conflict if callable(on_conflict) else partial(_conflict, status, retry_after)
    wanted = {method.upper() for method in methods} if methods is not None else None

    def free(request: HttpRequest) -> bool:
        return wanted is not None and request.method not in wanted

    def decorate(view: V) -> V:
        if not callable(view):
            raise TypeError(f'{shown(view)} is no view to decorate: give the decorator a key, as in @lock_view("key")')
        if is_async(view):
            return _async_wrapper(view, key_of, partial(ataking if raises else atrying, wish), free, conflict)  # type: ignore[return-value]
        return _sync_wrapper(view, key_of, partial(taking if raises else trying, wish), free, conflict)  # type: ignore[return-value]

    return decorate


def _sync_wrapper(
    view: Callable[..., Any],
    key_of: Callable[..., Key],
    enter: Callable[[Key], AbstractContextManager[Lock | None]],
    free: Callable[[HttpRequest], bool],
    conflict: Callable[..., HttpResponseBase],
) -> Callable[..., HttpResponseBase]:
    known: Collection[str] = getattr(view, "_non_atomic_requests", ())
    nested = isinstance(known, _Outside)  # an inner lock_view begins the transactions
    outside = known if isinstance(known, _Outside) else _Outside(known)

    @functools.wraps(view)
    def run(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        body = view if nested else _atomic(view, outside)
        if free(request):
            return body(request, *args, **kwargs)  # type: ignore[no-any-return]
        with enter(key_of(request, *args, **kwargs)) as held:
            return (conflict if held is None else body)(request, *args, **kwargs)

    run._non_atomic_requests = outside  # type: ignore[attr-defined]  # noqa: SLF001 - what non_atomic_requests() sets
    return run


def _async_wrapper(
    view: Callable[..., Any],
    key_of: Callable[..., Key],
    enter: Callable[[Key], AbstractAsyncContextManager[AsyncLock | None]],
    free: Callable[[HttpRequest], bool],
    conflict: Callable[..., HttpResponseBase],
) -> Callable[..., Any]:
    @functools.wraps(view)
    async def run(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if free(request):
            return await view(request, *args, **kwargs)  # type: ignore[no-any-return]
        async with enter(key_of(request, *args, **kwargs)) as held:
            return conflict(request, *args, **kwargs) if held is None else await view(request, *args, **kwargs)

    return run


class _Outside(set[str]):
    """Tells Django to begin no transaction around a view; it contains the aliases that are to have none at all."""

    def __contains__(self, alias: object) -> bool:
        return True


def _atomic(view: Callable[..., Any], outside: _Outside) -> Callable[..., Any]:
    """Begin the transactions of ATOMIC_REQUESTS around a view, as Django would."""
    exempt = set(outside)
    for alias, configured in connections.settings.items():
        if configured["ATOMIC_REQUESTS"] and alias not in exempt:
            view = transaction.atomic(using=alias)(view)
    return view


def _filled_from_url(key: Key) -> Callable[..., Key]:
    template = KeyTemplate(key)
    return lambda _request, /, *_args, **captured: template.fill(captured, where="the URL")


def _conflict(status: int | None, retry_after: int | Unset | None, *_args: Any, **_captured: Any) -> HttpResponse:
    seconds = setting("DLOCK_RETRY_AFTER") if retry_after is UNSET else retry_after
    return HttpResponse(
        gettext("This resource is locked by another request. Try again later.\n"),
        status=setting("DLOCK_CONFLICT_STATUS") if status is None else status,
        content_type="text/plain; charset=utf-8",
        headers={} if seconds is None else {"Retry-After": str(seconds)},
    )
