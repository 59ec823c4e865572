"""The admin's page "Locks": holders and waiters on each database, and a button that ends a holder's session.

A key is never part of an address: it is posted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.utils.timesince import timesince
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST
from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError, LockStateError, NotPermittedError

from .models import Lock
from .providers import provider

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from django.urls import URLPattern

    from dlock_core import LockInfo, LockWaiter

    ModelAdmin = admin.ModelAdmin[Lock]
else:
    ModelAdmin = admin.ModelAdmin

__all__ = ["LockAdmin"]

MINUTE = 60


class Line(NamedTuple):
    """One holder or waiter."""

    session: LockInfo | LockWaiter
    name: str
    holds: bool
    age: str


class Database(NamedTuple):
    """What one database shows, and why that is not all; '' when it is."""

    alias: str
    found: list[LockInfo]
    missing: str

    @property
    def lines(self) -> list[Line]:
        """Return each holder, followed by its waiters."""
        return [
            line
            for info in self.found
            for line in (
                Line(info, name_of(info), holds=True, age=_age_of(info)),
                *(Line(waiter, "", holds=False, age=_age(waiter.since)) for waiter in info.waiters),
            )
        ]

    def holder(self, lock: str, session: str) -> LockInfo | None:
        """Return the holder of a lock in a session, both in the database's own names; None when it is gone."""
        return next((one for one in self.found if (str(one.actual_key), str(one.session)) == (lock, session)), None)


def all_databases() -> list[Database]:
    """Ask every database of DATABASES."""
    return [look(alias) for alias in connections]


def look(alias: str) -> Database:
    """Ask one database; what it does not tell, and why, is an answer too."""
    try:
        with provider(alias) as locks:
            return Database(alias, locks.inspect(), "")
    except NotPermittedError as error:
        return Database(alias, list(error.found), f"Not permitted: {error}")
    except (LockError, SQLAlchemyError) as error:
        return Database(alias, [], str(error))


def name_of(info: LockInfo) -> str:
    """Return the key, or what the database calls the lock."""
    return info.key or f"{info.actual_key} (unnamed)"


def others_of(info: LockInfo, found: list[LockInfo]) -> list[str]:
    """Return the names of the locks that would end with one."""
    return [name_of(one) for one in found if one.session == info.session and one.actual_key != info.actual_key]


def _age_of(info: LockInfo) -> str:
    if info.since is None and info.session_since is not None:
        return f"at most {_age(info.session_since)}"
    return _age(info.since)


def _age(since: datetime | None) -> str:
    if since is None:
        return "?"
    seconds = max(0, round((datetime.now(UTC) - since).total_seconds()))
    return f"{seconds} s" if seconds < 2 * MINUTE else timesince(since)


class _Wish(forms.Form):
    """Which session is to end."""

    database = forms.ChoiceField(choices=lambda: [(alias, alias) for alias in connections], widget=forms.HiddenInput)
    lock = forms.CharField(strip=False, widget=forms.HiddenInput)
    session = forms.CharField(strip=False, widget=forms.HiddenInput)
    whole_session = forms.BooleanField(required=False, label="End the whole session, with all of its locks")
    confirmed = forms.BooleanField(required=False)


@admin.register(Lock)
class LockAdmin(ModelAdmin):
    """Show locks to users with `dlock.view_lock`, and let those with `dlock.terminate_lock` too end them.

    On an admin site of your own: `site.register(Lock, LockAdmin)`.
    """

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Let the index offer the list, and nothing to add or change even to superusers."""
        return {"add": False, "change": False, "delete": False, "view": self.has_view_permission(request)}

    def has_terminate_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may end a session that holds a lock."""
        user: Any = request.user
        return self.has_view_permission(request) and bool(user.has_perm("dlock.terminate_lock"))

    def get_urls(self) -> list[URLPattern]:
        """Return the two pages; those of a model with rows do not exist."""
        site = self.admin_site
        return [
            path("", site.admin_view(self.list_view), name="dlock_lock_changelist"),
            path("terminate/", site.admin_view(self.terminate_view), name="dlock_lock_terminate"),
        ]

    @method_decorator(never_cache)
    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show holders and waiters."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        may_terminate = self.has_terminate_permission(request)
        return self._page(request, "change_list", "Locks", databases=all_databases(), may_terminate=may_terminate)

    @method_decorator(require_POST)
    def terminate_view(self, request: HttpRequest) -> HttpResponse:
        """Ask whether a session is to end, and end it when that is confirmed."""
        if not self.has_terminate_permission(request):
            raise PermissionDenied
        wish = _Wish(request.POST)
        if not wish.is_valid():
            return self._back(request, messages.ERROR, "No lock was selected.")
        wished = wish.cleaned_data
        database = look(wished["database"])
        info = database.holder(wished["lock"], wished["session"])
        if info is None:
            return self._back(
                request, messages.WARNING, database.missing or "The session has released the lock already."
            )
        refusal = ""
        if wished["confirmed"]:
            try:
                return self._terminate(request, info, wished)
            except LockStateError as error:
                refusal = str(error).partition(". Say ")[0] + "."
        others = others_of(info, database.found)
        return self._page(
            request, "terminate", "Terminate?", info=info, name=name_of(info), others=others, wish=wish, refusal=refusal
        )

    def _terminate(self, request: HttpRequest, info: LockInfo, wished: dict[str, Any]) -> HttpResponse:
        try:
            with provider(wished["database"]) as locks:
                ended = locks.terminate(info, whole_session=wished["whole_session"])
        except LockStateError:
            raise
        except NotPermittedError as error:
            return self._back(request, messages.ERROR, f"Not permitted: {error}")
        except (LockError, SQLAlchemyError) as error:
            return self._back(request, messages.ERROR, str(error))
        if not ended:
            return self._back(request, messages.WARNING, f"{info.describe()} has released {name_of(info)} already.")
        self.log_change(request, Lock(key=name_of(info)), f"Terminated on {wished['database']}: {info.describe()}")
        return self._back(request, messages.SUCCESS, f"Terminated {info.describe()}, which held {name_of(info)}.")

    def _back(self, request: HttpRequest, level: int, text: str) -> HttpResponse:
        self.message_user(request, text, level)
        return HttpResponseRedirect(reverse("admin:dlock_lock_changelist", current_app=self.admin_site.name))

    def _page(self, request: HttpRequest, template: str, title: str, **more: Any) -> HttpResponse:
        request.current_app = self.admin_site.name  # as Django's own views do
        context = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, **more}
        return TemplateResponse(request, f"admin/dlock/lock/{template}.html", context)
