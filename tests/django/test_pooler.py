"""Behind PgBouncer in transaction mode: refused, found by the checks, and what works all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from django.core.checks import run_checks
from django.db import connections, transaction
from django.test.utils import override_settings

from dlock_core import UnsafeEnvironmentError
from dlock_django import lock, try_lock, xact_lock
from tests.conftest import server
from tests.fault.pgbouncer import PgBouncer

from .databases import entry
from .inside import NAME


@pytest.fixture
def pooled(postgresql_alias: str) -> Iterator[str]:
    """An alias that leads through a pooler."""
    if PgBouncer.installed() is None:
        pytest.fail("CI needs pgbouncer") if os.environ.get("CI") == "true" else pytest.skip("pgbouncer is missing")
    with PgBouncer(server("postgresql"), "transaction") as pooler:
        settings = entry(server("postgresql"), NAME=NAME, PORT=str(pooler.port), DISABLE_SERVER_SIDE_CURSORS=True)
        connections.settings["pooled"] = connections.configure_settings({"default": {}, "pooled": settings})["pooled"]
        try:
            yield "pooled"
        finally:
            connections["pooled"].close()
            del connections["pooled"]
            del connections.settings["pooled"]


def test_a_lock_through_a_pooler_is_refused(pooled: str) -> None:
    """With the way out."""
    with pytest.raises(UnsafeEnvironmentError, match="reaches the server directly"), lock("k", using=pooled):
        pytest.fail("locked")


def test_the_checks_tell_of_a_pooler(pooled: str) -> None:
    """`check --deploy` by its looks, `check --database` by asking."""
    with override_settings(DLOCK_DATABASE=pooled):
        looks = run_checks(tags=["dlock"], include_deployment_checks=True, databases=[])
        asked = run_checks(tags=["dlock"], databases=[pooled])
    assert [issue.id for issue in looks] == ["dlock.W003"]
    assert [issue.id for issue in asked] == ["dlock.W003"]
    assert "pooler" in asked[0].msg


def test_an_xact_lock_works_through_a_pooler(pooled: str) -> None:
    """And excludes those that come directly."""
    with transaction.atomic(using=pooled):
        xact_lock("k", using=pooled)
        with try_lock("k", using="postgresql", allow_atomic=True) as direct:
            assert direct is None
    with lock("k", using="postgresql"):
        pass
