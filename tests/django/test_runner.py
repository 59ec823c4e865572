"""Projects with locks can be tested: `manage.py test`, and the fixtures for pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from tests.conftest import server

from .databases import NAME, ONE_OF_EACH, Row
from .site import Site

ROWS = ONE_OF_EACH

CONFTEST = """
import django
from django.conf import settings

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "app.db"}})
django.setup()
pytest_plugins = ["dlock_django.pytest_plugin"]
"""
TESTS = """
import pytest
from dlock_core import LockTimeoutError
from dlock_django import lock

def test_held(dlock_hold):
    dlock_hold("k")
    with pytest.raises(LockTimeoutError), lock("k"):
        pass

def test_free():
    with lock("k"):
        pass
"""


def test_django_s_runner_makes_and_drops_its_database(site: Site, row: Row) -> None:
    """In four processes where Django can copy the database, each with its own; what it made is gone."""
    parallel = ["--parallel", "4"] if row.kind != "mariadb" else []
    done = site.run("test", "shop", "--noinput", *parallel)
    assert done.process.returncode == 0, done.err
    assert "Ran 6 tests" in done.err
    if row.kind != "sqlite":
        with server(row.kind).connect() as connection:
            left = connection.execute(sa.text(QUESTION), {"name": f"test_{NAME}%"}).all()
        assert left == []


QUESTION = "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE :name"


def test_a_fixture_holds_until_the_test_ends(tmp_path: Path) -> None:
    """In a project that uses pytest."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout
