"""`lock_view`: one request at a time for a key; the others get 409 at once, or wait."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import iscoroutinefunction
from django.db import connections, transaction
from django.http import HttpResponse
from django.utils.translation import gettext as _

from dlock_core import KeyTemplate

from .conf import UNSET, Unset, setting
from .locks import Wish, atrying, trying

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from .keys import Key, KeySource

__all__ = ["lock_view"]

V = TypeVar("V", bound="Callable[..., Any]")


def lock_view(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    methods: Collection[str] | None = None,
    status: int | None = None,
    retry_after: int | None = None,
) -> Callable[[V], V]:
    """Decorate a view, sync or async: its body runs under a lock, and whoever finds it held gets 409.

    The answer carries `Retry-After` and says nothing about the key. Under ATOMIC_REQUESTS the lock is taken
    before the transaction begins and released after it has committed. A streamed body is sent after the
    release. For class-based views use `method_decorator` with `name="dispatch"`, or on an async handler.

    Args:
        key: As for `lock`; in text, `{name}` stands for what the URL captured under that name. Or a callable
            that gets the request and what the URL captured, and returns the key.
        using: The alias of the database that lends the lock; default: DLOCK_DATABASE.
        timeout: Seconds to wait; 0 tries once, None is for ever. Default: DLOCK_TIMEOUT, which is 0.
        shared: Share it with others who ask for it shared.
        methods: The HTTP methods to lock; default: all.
        status: Of the answer to whoever came in vain; default: DLOCK_CONFLICT_STATUS, which is 409.
        retry_after: Whole seconds of the header; default: DLOCK_RETRY_AFTER, which is 1.
    """
    wish, key_of = Wish(using, timeout, shared), key if callable(key) else _filled_from_url(key)
    wanted = {method.upper() for method in methods} if methods is not None else None

    def free(request: HttpRequest) -> bool:
        return wanted is not None and request.method not in wanted

    def decorate(view: V) -> V:
        wrap = _async_wrapper if iscoroutinefunction(view) else _sync_wrapper
        return wrap(view, key_of, wish, free, functools.partial(_conflict, status, retry_after))  # type: ignore[return-value]

    return decorate


def _sync_wrapper(
    view: Callable[..., Any],
    key_of: Callable[..., Key],
    wish: Wish,
    free: Callable[[HttpRequest], bool],
    conflict: Callable[[], HttpResponse],
) -> Callable[..., HttpResponseBase]:
    known: Collection[str] = getattr(view, "_non_atomic_requests", ())
    nested = isinstance(known, _Outside)  # an inner lock_view begins the transactions
    outside = known if isinstance(known, _Outside) else _Outside(known)

    @functools.wraps(view)
    def run(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        body = view if nested else _atomic(view, outside)
        if free(request):
            return body(request, *args, **kwargs)  # type: ignore[no-any-return]
        with trying(wish, key_of(request, *args, **kwargs)) as held:
            return conflict() if held is None else body(request, *args, **kwargs)

    run._non_atomic_requests = outside  # type: ignore[attr-defined]  # noqa: SLF001 - what non_atomic_requests() sets
    return run


def _async_wrapper(
    view: Callable[..., Any],
    key_of: Callable[..., Key],
    wish: Wish,
    free: Callable[[HttpRequest], bool],
    conflict: Callable[[], HttpResponse],
) -> Callable[..., Any]:
    @functools.wraps(view)
    async def run(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if free(request):
            return await view(request, *args, **kwargs)  # type: ignore[no-any-return]
        async with atrying(wish, key_of(request, *args, **kwargs)) as held:
            return conflict() if held is None else await view(request, *args, **kwargs)

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


def _conflict(status: int | None, retry_after: int | None) -> HttpResponse:
    seconds = setting("DLOCK_RETRY_AFTER") if retry_after is None else retry_after
    return HttpResponse(
        _("Somebody else is at it. Try again later.\n"),
        status=setting("DLOCK_CONFLICT_STATUS") if status is None else status,
        content_type="text/plain; charset=utf-8",
        headers={} if seconds is None else {"Retry-After": str(seconds)},
    )
