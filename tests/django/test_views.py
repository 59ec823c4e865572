"""`lock_view`, through Django's own handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import override_settings

from dlock_core import LockStateError, LockTimeoutError
from dlock_django import is_locked, lock_view
from dlock_django.signals import lock_released
from dlock_django.test import hold_lock

Inside = Callable[[Callable[[], object]], None]


@pytest.fixture
def inside_view(default_alias: str, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """What runs something inside the next view."""
    from shop import views

    return lambda action: monkeypatch.setattr(views, "inside", action)


@pytest.fixture(params=[False, True], ids=["autocommit", "atomic"])
def atomic_requests(request: pytest.FixtureRequest, default_alias: str) -> Iterator[bool]:
    """With and without ATOMIC_REQUESTS."""
    configured = connections.settings["default"]
    configured["ATOMIC_REQUESTS"] = request.param
    yield request.param
    configured["ATOMIC_REQUESTS"] = False


@pytest.mark.parametrize("path", ["change", "class", "twice"])
def test_a_view_runs_under_its_lock(path: str, inside_view: Inside, atomic_requests: bool) -> None:
    """Inside its transaction, which has committed when the lock is released."""
    from shop.models import Stock

    seen: list[object] = []
    name = f"{path}-{atomic_requests}"

    def look(**about: object) -> None:
        seen.append((connections["default"].in_atomic_block, Stock.objects.filter(name=name).count()))

    inside_view(lambda: seen.append(is_locked(f"stock:{name}")))
    lock_released.connect(look)
    try:
        answer = Client().get(f"/{path}/{name}/")
    finally:
        lock_released.disconnect(look)
    assert answer.content.decode() == f"1 {'atomic' if atomic_requests else 'autocommit'}"
    assert seen[:2] == [True, (False, 1)]


def test_a_view_that_wants_no_transaction_gets_none(inside_view: Inside, atomic_requests: bool) -> None:
    """Also when that is said outside of lock_view; and methods that are not named need no lock."""
    path = f"/by-post/{atomic_requests}/"
    with hold_lock(f"stock:{atomic_requests}"):
        assert Client().get(path).content == b"1 autocommit"
        assert Client().post(path).status_code == 409
    assert Client().post(path).content == b"2 autocommit"


def test_one_that_finds_it_held_gets_409(default_alias: str) -> None:
    """With Retry-After, and not a word about the key; another key is free."""
    with hold_lock("stock:secret"):
        answer = Client().get("/change/secret/")
        assert (answer.status_code, answer["Retry-After"]) == (409, "1")
        assert b"secret" not in answer.content
        assert b"stock" not in answer.content
        with override_settings(DLOCK_CONFLICT_STATUS=503, DLOCK_RETRY_AFTER=None):
            answer = Client().get("/change/secret/")
        assert (answer.status_code, answer.has_header("Retry-After")) == (503, False)
        assert Client().get("/change/open/").status_code == 200
    with hold_lock(("outer", "x")):
        answer = Client().get("/twice/x/")
        assert (answer.status_code, answer["Retry-After"]) == (423, "7")


def test_a_view_can_have_an_answer_of_its_own(default_alias: str) -> None:
    """By a callable that gets what the view would get, or by an exception; sync and async."""

    def view(_request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(name)

    async def aview(_request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(name)

    def busy(_request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(f"{name} is busy", status=423)

    request = RequestFactory().get("/")
    own, raising, bare = (
        lock_view("stock:{name}", **options)(view)
        for options in ({"on_conflict": busy}, {"on_conflict": "raise"}, {"retry_after": None})
    )
    aown = lock_view("stock:{name}", on_conflict=busy)(aview)
    araising = lock_view("stock:{name}", on_conflict="raise")(aview)
    with hold_lock("stock:x"):
        for answer in (own(request, name="x"), asyncio.run(aown(request, name="x"))):
            assert (answer.status_code, answer.content) == (423, b"x is busy")
        with pytest.raises(LockTimeoutError):
            raising(request, name="x")
        with pytest.raises(LockTimeoutError):
            asyncio.run(araising(request, name="x"))
        answer = bare(request, name="x")
        assert (answer.status_code, answer.has_header("Retry-After")) == (409, False)
    for guarded in (own, raising, bare):
        assert guarded(request, name="x").content == b"x"
    assert asyncio.run(araising(request, name="x")).content == b"x"


def test_a_lock_view_without_a_key_or_with_an_unknown_answer_is_refused() -> None:
    """The first when the view is called, since a key may be a callable; the second at once."""
    bare: Any = lock_view(lambda _request: HttpResponse())
    with pytest.raises(TypeError, match="give the decorator a key"):
        bare(RequestFactory().get("/"))
    with pytest.raises(ValueError, match="give 'abort', 'raise' or a callable"):
        lock_view("k", on_conflict="skip")  # type: ignore[arg-type]


def test_a_conflict_inside_a_view_is_its_own(inside_view: Inside) -> None:
    """Only the lock of lock_view makes a 409."""

    def fail() -> None:
        raise LockTimeoutError("inner")

    inside_view(fail)
    with pytest.raises(LockTimeoutError, match="inner"):
        Client().get("/change/fails/")
    assert not is_locked("stock:fails")


def test_a_lock_that_comes_after_the_transaction_is_refused(atomic_requests: bool) -> None:
    """On a method of a class Django has begun it already: better an error than rows that the next one misses."""
    if atomic_requests:
        with pytest.raises(LockStateError, match="lock_view"):
            Client().get("/late/x/")
    else:
        assert Client().get("/late/x/").status_code == 200


@pytest.mark.parametrize("path", ["async", "async-class"])
def test_an_async_view_runs_under_its_lock(path: str, inside_view: Inside) -> None:
    """And answers 409 too."""
    seen: list[bool] = []
    inside_view(lambda: seen.append(is_locked("stock:a")))

    async def ask() -> int:
        return (await AsyncClient().get(f"/{path}/a/")).status_code

    assert (asyncio.run(ask()), seen) == (200, [True])
    with hold_lock("stock:a"):
        assert asyncio.run(ask()) == 409
    assert seen == [True]


def test_a_sync_lock_over_an_async_class_is_refused(default_alias: str) -> None:
    """`dispatch` of an async class only makes a coroutine: the lock would be free before it runs."""

    async def ask() -> None:
        await AsyncClient().get("/mistaken/x/")

    with pytest.raises(SynchronousOnlyOperation, match="async handlers of a class"):
        asyncio.run(ask())
