"""The admin's page "Locks"."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.test import Client

from dlock_core import LockLostError
from dlock_django import is_locked
from dlock_django.providers import make_provider
from dlock_django.test import hold_lock

LIST = "/admin/dlock/lock/"
TERMINATE = "/admin/dlock/lock/terminate/"
EVIL = "<script>alert('x')</script>&a=b"


def model(name: str) -> Any:
    """Return a model of Django's own, which can be imported only when Django is set up."""
    return apps.get_model(name)


def staff(*permissions: str, strict: bool = False) -> Client:
    """Return the browser of another member of the staff."""
    user = model("auth.User").objects.create(username="staff" + "".join(permissions), is_staff=True)
    found = model("auth.Permission").objects.filter(content_type__app_label="dlock", codename__in=permissions)
    user.user_permissions.set(found)
    client = Client(enforce_csrf_checks=strict)
    client.force_login(user)
    return client


@pytest.fixture(autouse=True)
def _no_users(inside: object) -> Iterator[None]:
    """Nothing is left for the next test."""
    yield
    model("auth.User").objects.all().delete()
    connections.close_all()


@pytest.fixture
def reader(_no_users: None) -> Client:
    """Who may look."""
    return staff("view_lock")


@pytest.fixture
def operator(_no_users: None) -> Client:
    """Who may terminate."""
    return staff("view_lock", "terminate_lock")


def part_of(page: str, alias: str) -> str:
    """Return what the page says of one database."""
    return page.partition(f'data-database="{alias}"')[2].partition('<div class="module"')[0]


def fields(page: str, alias: str) -> list[dict[str, str]]:
    """Return what each button of a database would post."""
    forms = re.findall(r"<form.*?</form>", part_of(page, alias), flags=re.DOTALL)
    pattern = r'name="(database|lock|session)" value="(.*?)"'
    return [{name: html.unescape(value) for name, value in re.findall(pattern, form)} for form in forms]


def text(answer: object) -> str:
    """Return a page."""
    return answer.content.decode()  # type: ignore[attr-defined, no-any-return]


def test_the_page_shows_the_holder_on_each_database(alias: str, reader: Client) -> None:
    """The key is text, whatever it contains; another database has no locks."""
    with hold_lock(EVIL, using=alias) as held:
        page = text(reader.get(LIST))
        other = "second" if alias == "default" else "default"
        assert "No locks are held." in part_of(page, other)
        found = part_of(page, alias)
        assert "<script" not in found
        assert html.escape(EVIL) in found or str(held.actual_key) in found
        assert "<td>django</td>" in found
        assert "<td>holds</td>" in found


def test_the_index_leads_to_the_page(default_alias: str, reader: Client) -> None:
    """For users that may look, and for no others; there is nothing to add, change or delete."""
    assert f'href="{LIST}"' in text(reader.get("/admin/"))
    for path in ("add/", "k/change/", "k/delete/"):
        assert reader.get(LIST + path).status_code == 404
    stranger = staff()
    assert LIST not in text(stranger.get("/admin/"))
    assert stranger.get(LIST).status_code == 403
    assert Client().get(LIST)["Location"].startswith("/admin/login/")


def test_a_user_that_may_only_look_sees_no_button(default_alias: str, reader: Client, operator: Client) -> None:
    """And is refused when the form is posted all the same."""
    with hold_lock("k"):
        assert "Terminate" not in text(reader.get(LIST))
        [button] = fields(text(operator.get(LIST)), "default")
        assert reader.post(TERMINATE, {**button, "confirmed": "on"}).status_code == 403
        assert is_locked("k")


def test_terminate_asks_and_then_ends_the_session(alias: str, operator: Client) -> None:
    """The holder knows it lost; the admin's log knows the user that did it."""
    with pytest.raises(LockLostError), hold_lock(EVIL, using=alias):
        [button] = fields(text(operator.get(LIST)), alias)
        question = text(operator.post(TERMINATE, button))
        assert is_locked(EVIL, using=alias)
        assert "<script>alert" not in question
        answer = operator.post(TERMINATE, {**button, "confirmed": "on"}, follow=True)
        assert "Terminated django on " in text(answer)
        assert answer.redirect_chain == [(LIST, 302)]
        assert not is_locked(EVIL, using=alias)
    assert "Terminated on " + alias in model("admin.LogEntry").objects.latest("pk").change_message
    assert operator.get("/admin/").status_code == 200


def test_a_lock_that_is_free_by_now_is_said_to_be(alias: str, operator: Client) -> None:
    """Nothing else is ended."""
    with hold_lock("k", using=alias):
        [button] = fields(text(operator.get(LIST)), alias)
    assert "released the lock already" in text(operator.post(TERMINATE, {**button, "confirmed": "on"}, follow=True))
    assert "No lock was selected" in text(operator.post(TERMINATE, {**button, "database": "nowhere"}, follow=True))


def test_the_other_locks_of_a_session_are_named_and_spared(postgresql_alias: str, operator: Client) -> None:
    """Until the whole session is ticked."""
    with make_provider(postgresql_alias) as stranger:
        locks = [stranger.lock(key) for key in ("a", "b")]
        for lock in locks:
            lock.acquire()
        button = next(
            one for one in fields(text(operator.get(LIST)), postgresql_alias) if one["lock"] == str(locks[0].actual_key)
        )
        question = text(operator.post(TERMINATE, button))
        assert f"<li>{locks[1].actual_key} (unnamed)</li>" in question
        refused = text(operator.post(TERMINATE, {**button, "confirmed": "on"}))
        assert "would end 1 more" in refused
        assert "whole_session" in refused
        assert "Say " not in refused
        assert is_locked("a", using=postgresql_alias)
        operator.post(TERMINATE, {**button, "confirmed": "on", "whole_session": "on"})
        for lock in locks:
            with pytest.raises(LockLostError):
                lock.release()


def test_a_get_and_a_forged_post_end_nothing(default_alias: str) -> None:
    """CSRF is checked, as everywhere in the admin."""
    operator = staff("view_lock", "terminate_lock", strict=True)
    with hold_lock("k"):
        [button] = fields(text(operator.get(LIST)), "default")
        assert operator.get(TERMINATE, {**button, "confirmed": "on"}).status_code == 405
        assert operator.post(TERMINATE, {**button, "confirmed": "on"}).status_code == 403
        assert is_locked("k")


def test_what_the_database_does_not_permit_is_said(postgresql_alias: str, operator: Client) -> None:
    """A role without rights sees the lock, and may not end another's session."""
    configured = connections[postgresql_alias].settings_dict
    with connections[postgresql_alias].cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS dlock_plain")
        cursor.execute("CREATE ROLE dlock_plain LOGIN")
    connections.close_all()
    owner = configured["USER"]
    with hold_lock("k", using=postgresql_alias):
        configured["USER"] = "dlock_plain"
        try:
            [button] = fields(text(operator.get(LIST)), postgresql_alias)
            answer = text(operator.post(TERMINATE, {**button, "confirmed": "on", "whole_session": "on"}, follow=True))
        finally:
            configured["USER"] = owner
        assert "Not permitted: " in answer
        assert "pg_signal_backend" in answer
        assert is_locked("k", using=postgresql_alias)
    with connections[postgresql_alias].cursor() as cursor:
        cursor.execute("DROP ROLE dlock_plain")


def test_a_database_that_is_away_is_said_to_be(postgresql_alias: str, reader: Client) -> None:
    """And the others are shown."""
    configured = connections[postgresql_alias].settings_dict
    port, configured["PORT"] = configured["PORT"], "1"
    try:
        with hold_lock("k"):
            page = text(reader.get(LIST))
    finally:
        configured["PORT"] = port
    assert "refused" in part_of(page, postgresql_alias)
    assert "No locks are held" not in part_of(page, postgresql_alias)
    assert "<td>holds</td>" in part_of(page, "default")


def test_there_is_no_table_and_no_migration(default_alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And code that walks over all models finds it empty."""
    call_command("makemigrations", dry_run=True)
    assert "dlock" not in capsys.readouterr().out
    call_command("dumpdata", "dlock", use_base_manager=True)
    assert capsys.readouterr().out.rstrip().endswith("[]")  # Django 6 ends the line
    assert "dlock_lock" not in connections["default"].introspection.table_names()
    assert not model("dlock.Lock").objects.exists()
