"""`dlock init` makes the fence's table, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from dlock_core import StaleTokenError, fence
from dlock_core.cli.group import dlock
from tests.conftest import server


@pytest.mark.parametrize("drivername", ["sqlite", "postgresql+psycopg", "mysql+pymysql"])
def test_the_table_serves_a_fence(drivername: str, tmp_path: Path) -> None:
    """Made once, found the second time, and `fence` works with it."""
    kind = drivername.partition("+")[0]
    url = f"sqlite:///{tmp_path / 'app.db'}"
    if kind != "sqlite":
        url = server("mariadb" if kind == "mysql" else kind).url(drivername)
    runner = CliRunner()
    assert "dlock_fences made" in runner.invoke(dlock, ["init", url], catch_exceptions=False).output
    assert "already" in runner.invoke(dlock, ["init"], env={"DLOCK_URL": url}, catch_exceptions=False).output
    heard = json.loads(runner.invoke(dlock, ["init", url, "--json"], catch_exceptions=False).output)
    tables = ["dlock_fences", *(["dlock_names"] if kind == "postgresql" else [])]
    assert [(one["table"], one["made"]) for one in heard] == [(name, False) for name in tables]
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        fence(connection, "k", 2)
        with pytest.raises(StaleTokenError):
            fence(connection, "k", 1)
    for name in tables:
        sa.Table(name, sa.MetaData()).drop(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("no url", "not a database URL"),
        ("postgresql+asyncpg://user:secret@host/db", "async driver"),
        ("postgresql+psycopg://user:secret@127.0.0.1:1/db", "127.0.0.1:1"),
        ("nosuchdb://host/db", "no dialect"),
    ],
)
def test_a_bad_url_is_one_line_and_status_2(url: str, says: str) -> None:
    """Nothing is made, and no password is shown."""
    result = CliRunner().invoke(dlock, ["init", url])
    assert result.exit_code == 2
    assert says in result.output
    assert "secret" not in result.output
