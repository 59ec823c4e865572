"""The admin's page "Locks": who holds and who waits on each database, and an end to a holder's session.

A key is never part of an address: who terminates posts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST
from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError, LockStateError, NotPermittedError

from .models import Lock
from .providers import provider
from .sights import all_databases, look, name_of, others_of

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from django.urls import URLPattern

    from dlock_core import LockInfo

    ModelAdmin = admin.ModelAdmin[Lock]
else:
    ModelAdmin = admin.ModelAdmin

__all__ = ["LockAdmin"]


class _Wish(forms.Form):
    """Which session is to end."""

    database = forms.ChoiceField(choices=lambda: [(alias, alias) for alias in connections], widget=forms.HiddenInput)
    lock = forms.CharField(strip=False, widget=forms.HiddenInput)
    session = forms.CharField(strip=False, widget=forms.HiddenInput)
    whole_session = forms.BooleanField(required=False, label="End the whole session, with all of its locks")
    confirmed = forms.BooleanField(required=False)


@admin.register(Lock)
class LockAdmin(ModelAdmin):
    """Show locks to who may `dlock.view_lock`, and end them for who may `dlock.terminate_lock` too.

    On an admin site of your own: `site.register(Lock, LockAdmin)`.
    """

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Let the index offer the list, and nothing to add or change even to superusers."""
        return {"add": False, "change": False, "delete": False, "view": self.has_view_permission(request)}

    def has_terminate_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody may end a session that holds a lock."""
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
        """Show who holds and who waits."""
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
            return self._back(request, messages.ERROR, "Nobody is named whose lock is to end.")
        wished = wish.cleaned_data
        database = look(wished["database"])
        info = database.holder(wished["lock"], wished["session"])
        if info is None:
            return self._back(request, messages.WARNING, database.missing or "Session has let go of the lock already.")
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
            return self._back(request, messages.WARNING, f"{info.party} has let go of {name_of(info)} already.")
        self.log_change(request, Lock(key=name_of(info)), f"Terminated on {wished['database']}: {info.party}")
        return self._back(request, messages.SUCCESS, f"Terminated {info.party}, who held {name_of(info)}.")

    def _back(self, request: HttpRequest, level: int, text: str) -> HttpResponse:
        self.message_user(request, text, level)
        return HttpResponseRedirect(reverse("admin:dlock_lock_changelist", current_app=self.admin_site.name))

    def _page(self, request: HttpRequest, template: str, title: str, **more: Any) -> HttpResponse:
        request.current_app = self.admin_site.name  # as Django's own views do
        context = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, **more}
        return TemplateResponse(request, f"admin/dlock/lock/{template}.html", context)
