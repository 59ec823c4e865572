"""The billing example runs as a user would run it, with one command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tests.celery.sites import delete_from_rabbitmq, require_rabbitmq
from tests.conftest import server

PROGRAM = Path(__file__).parents[2] / "example_projects" / "celery_billing" / "billing.py"


@pytest.fixture(params=["filesystem and SQLite", "RabbitMQ and PostgreSQL"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a user sets: nothing, or two addresses; a queue of our own besides."""
    if request.param == "filesystem and SQLite":
        yield {"DATABASE_URL": f"sqlite:///{tmp_path}/billing.db"}
        return
    queue, url = f"billing-{uuid4().hex[:12]}", server("postgresql").url("postgresql+psycopg")
    yield {"CELERY_BROKER_URL": require_rabbitmq(), "DATABASE_URL": url, "QUEUE": queue}
    delete_from_rabbitmq(queue)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE ledger"))
    engine.dispose()


def test_each_customer_is_billed_once_and_reports_do_not_overlap(environment: dict[str, str], tmp_path: Path) -> None:
    """A chord of chains whose keys collide, and a beat that is faster than its task."""
    command = [sys.executable, str(PROGRAM)]
    run = subprocess.run(
        command, env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=90
    )
    assert "customer 1 paid 100; customer 2 paid 200; customer 3 paid 300" in run.stdout
    assert "billing.report" in run.stderr
    assert "skipped: key 'billing.report' is held" in run.stderr
    engine = sa.create_engine(environment["DATABASE_URL"])
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM ledger")) == 3
    engine.dispose()
