"""Views under locks."""

from __future__ import annotations

from collections.abc import Callable

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views import View

from dlock_django import alock, lock_view
from shop.models import Stock


def nothing() -> None:
    """Do nothing."""


inside: Callable[[], object] = nothing
"""What a test wants done inside the next view."""


def add_one(name: str) -> HttpResponse:
    """Change a row, and say whether a transaction is open."""
    row, _ = Stock.objects.get_or_create(name=name)
    row.count += 1
    row.save()
    inside()
    return HttpResponse(f"{row.count} {'atomic' if connection.in_atomic_block else 'autocommit'}")


@lock_view("stock:{name}")
def change(request: HttpRequest, name: str) -> HttpResponse:
    """Change a row."""
    return add_one(name)


@transaction.non_atomic_requests
@lock_view("stock:{name}", methods=["post"])
def by_post(request: HttpRequest, name: str) -> HttpResponse:
    """Lock only what changes something, and have no transaction."""
    return add_one(name)


@lock_view(lambda request, name: ("outer", name), status=423, retry_after=7)
@lock_view("stock:{name}")
def twice(request: HttpRequest, name: str) -> HttpResponse:
    """Take two locks."""
    return add_one(name)


@method_decorator(lock_view("stock:{name}"), name="dispatch")
class Change(View):
    """The same as a class."""

    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        """Change a row."""
        return add_one(name)


class Late(View):
    """Locks when Django has begun the transaction already."""

    @method_decorator(lock_view("stock:{name}"))
    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        """Change a row."""
        return add_one(name)


@method_decorator(lock_view("stock:{name}"), name="dispatch")
class Mistaken(View):
    """Locks what only makes a coroutine."""

    async def get(self, request: HttpRequest, name: str) -> HttpResponse:
        """Never get here."""
        raise AssertionError(name)


class AsyncChange(View):
    """An async class."""

    @method_decorator(lock_view("stock:{name}"))
    async def get(self, request: HttpRequest, name: str) -> HttpResponse:
        """Answer."""
        inside()
        return HttpResponse(name)


@lock_view("stock:{name}")
async def achange(request: HttpRequest, name: str) -> HttpResponse:
    """Be async."""
    inside()
    return HttpResponse(name)


async def waiting(request: HttpRequest) -> HttpResponse:
    """Wait for as long as it takes."""
    async with alock("busy", timeout=None):
        return HttpResponse("done")


def orm(request: HttpRequest) -> HttpResponse:
    """Ask the database for something else."""
    return HttpResponse(str(Stock.objects.count()))
