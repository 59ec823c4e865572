"""The examples run, as several processes, and do what they say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.conftest import server
from tests.servers import wait_until

FOLDER = Path(__file__).parents[2] / "example_projects" / "use_cases"
ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+asyncpg"}


@pytest.fixture(params=["sqlite", "postgresql+psycopg"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database for an example, empty afterwards."""
    drivername: str = request.param
    if drivername == "sqlite":
        yield f"sqlite:///{tmp_path / 'app.db'}"
        return
    url = server("postgresql").url(drivername)
    yield url
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS bills, runs, profiles"))
    engine.dispose()


def start(name: str, *arguments: str, url: str, **environment: str) -> subprocess.Popen[str]:
    """Start an example in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(FOLDER / name), *arguments],
        env={**os.environ, "DATABASE_URL": url, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def answers(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Return what each process printed, after all ended well."""
    printed = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return printed


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Return what the examples left in the database."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sa.text(statement))]
    engine.dispose()
    return found


def test_a_user_is_billed_once(url: str) -> None:
    """Six workers, one bill; none fails."""
    printed = answers([start("billing.py", "7", url=url) for _ in range(6)])
    assert printed.count("billed") == 1
    assert set(printed) <= {"billed", "billed before", "another worker bills"}
    assert rows(url, "SELECT user_id FROM bills") == [(7,)]


def test_an_export_runs_once_and_others_get_409(url: str) -> None:
    """A real server with two worker processes; another resource is not disturbed."""
    drivername = url.partition(":")[0]
    environment = {**os.environ, "DATABASE_URL": url.replace(drivername, ASYNC_DRIVERS[drivername], 1)}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", "export_api:app", "--port", port, "--workers", "2"]
    process = subprocess.Popen(command, cwd=FOLDER, env=environment, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _is_up(address), "the server to answer")
        with ThreadPoolExecutor(8) as pool:
            ask = [f"{address}/resources/{name}/export" for name in ["a"] * 7 + ["b"]]
            results = list(pool.map(lambda where: httpx.post(where, timeout=20), ask))
        assert sorted(result.status_code for result in results[:7]) == [200] + [409] * 6
        assert results[7].status_code == 200
        assert {result.headers.get("Retry-After") for result in results if result.status_code == 409} == {"1"}
    finally:
        process.terminate()
        process.wait(20)


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/docs").status_code == 200
    except httpx.TransportError:
        return False


def test_scheduled_jobs_of_two_servers_never_overlap(url: str) -> None:
    """Two schedulers that tick five times a second."""
    answers([start("sync_job.py", url=url, INTERVAL="0.2", RUN_FOR="3") for _ in range(2)])
    runs = rows(url, "SELECT began, ended FROM runs ORDER BY began")
    assert len(runs) >= 5
    assert all(one[1] <= other[0] for one, other in pairwise(runs))


def test_no_update_of_a_profile_is_lost(url: str) -> None:
    """Five processes read, think and write; each name is there once."""
    names = ["Ada", "Eva", "Ida", "Ben", "Leo"]
    answers([start("profiles.py", "7", name, url=url) for name in names])
    [(found,)] = rows(url, "SELECT names FROM profiles WHERE user_id = 7")
    assert sorted(str(found).split(",")) == sorted(names)
