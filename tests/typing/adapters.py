"""Types of the adapters, as mypy and pyright infer them for users."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from flask import Flask, Response

import dlock_celery
import dlock_django
import dlock_flask
from dlock_core import AsyncLock, Lock

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

dlock = dlock_flask.DLock(Flask(__name__))


@dlock_celery.single_instance(key="invoice:{customer_id}", on_conflict="retry")
def send_invoice(customer_id: int) -> str:
    """Send an invoice."""
    return f"sent to {customer_id}"


@dlock_celery.single_instance
def nightly_report() -> int:
    """Write a report."""
    return 1


@dlock_celery.single_instance(on_conflict="wiat")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
def misspelt() -> None:
    """Never."""


def a_task_keeps_its_types() -> None:
    """Its arguments and what it returns."""
    assert_type(send_invoice(7), str)
    assert_type(nightly_report(), int)
    assert_type(dlock_celery.current_lock(), Lock | None)


async def django_blocks_give_the_lock() -> None:
    """Those that try give None as well."""
    with dlock_django.lock("key", timeout=None) as lock, dlock_django.try_lock("key") as perhaps:
        assert_type(lock, Lock)
        assert_type(perhaps, Lock | None)
    with dlock_django.locked_atomic("key") as around:
        assert_type(around, Lock)
    async with dlock_django.alock("key") as alock, dlock_django.atry_lock("key") as aperhaps:
        assert_type(alock, AsyncLock)
        assert_type(aperhaps, AsyncLock | None)


@dlock_django.lock("orders:{order_id}")
def ship(order_id: int) -> str:
    """Ship an order."""
    return f"shipped {order_id}"


@dlock_django.lock_view("invoice:{pk}", methods=["POST"])
def invoice(request: HttpRequest, pk: int) -> HttpResponse:
    """Send an invoice."""
    raise NotImplementedError


def decorated_functions_keep_their_types(request: HttpRequest) -> HttpResponse:
    """Functions and views."""
    assert_type(ship(1), str)
    return invoice(request, pk=1)


@dlock.locked(["doc_id"])
def save(doc_id: int) -> str:
    """Save a document."""
    return f"saved {doc_id}"


async def flask_gives_handles() -> None:
    """Each form of them; a view and a response stay what they are."""
    with dlock.try_lock("key") as handle, dlock.lock("key", timeout=5) as other:
        assert_type(handle, dlock_flask.Handle)
        assert_type(bool(other), bool)
    async with dlock.alock("key") as ahandle:
        assert_type(ahandle, dlock_flask.AsyncHandle)
    assert_type(save(1), str)
    assert_type(dlock.stream(Response("x"), handle), Response)
