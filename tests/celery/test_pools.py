"""The other pools: solo, threads and gevent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import server
from tests.contract.witnesses import PostgreSQLWitness
from tests.servers import wait_until

from .sites import Site, open_site
from .stage import Stage
from .workers import Worker

pytestmark = pytest.mark.slow  # workers that are killed, and pools of each kind

POOLS = {
    "solo": ("filesystem", "sqlite", ("-P", "solo")),
    "threads": ("redis", "mariadb", ("-P", "threads", "-c", "4")),
    "gevent": ("rabbitmq", "postgresql", ("-P", "gevent", "-c", "120")),
}


@pytest.fixture(scope="module", params=POOLS)
def pooled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Worker]]:
    """A site with one worker of a pool."""
    broker, database, arguments = POOLS[request.param]
    folder = tmp_path_factory.mktemp("pool")
    with (
        open_site(broker, database, folder) as site,
        Worker(request.param, site.configuration, folder, *arguments) as worker,
    ):
        yield site, worker


def test_a_task_runs_and_frees_its_lock(pooled: tuple[Site, Worker], stage: Stage) -> None:
    """Also after an error."""
    site, _ = pooled
    for do, state in (("end", "SUCCESS"), ("fail", "FAILURE"), ("end", "SUCCESS")):
        site.wait_for_state(site.send("skip", stage.path, do), state)
    site.assert_all_free()


def test_bodies_of_one_key_do_not_overlap(pooled: tuple[Site, Worker], stage: Stage) -> None:
    """Within one process, whose tasks have sessions in common."""
    site, _ = pooled
    results = [site.send("patient", stage.path, "sleep 0.05") for _ in range(12)]
    assert {result.get(timeout=30) for result in results} == {"did sleep 0.05"}
    stage.assert_no_overlap()
    site.assert_all_free()


@pytest.mark.parametrize("pooled", ["threads", "gevent"], indirect=True, scope="module")
def test_a_key_that_another_task_holds_is_a_conflict(pooled: tuple[Site, Worker], stage: Stage) -> None:
    """For each of many that ask at once; in a solo worker nothing can."""
    site, _ = pooled
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    results = [site.send("skip", stage.path) for _ in range(10)]
    assert {result.get(timeout=30) for result in results} == {None}
    stage.open()
    site.assert_all_free()
    assert len(stage.runs()) == 1


def test_a_solo_worker_leaves_other_locks_of_its_process_alone(tmp_path: Path, stage: Stage) -> None:
    """The signal `worker_process_init` comes in the process itself there."""
    with open_site("filesystem", "sqlite", tmp_path) as site:
        site.configuration["hold_from_start"] = "mine"
        with Worker("solo", site.configuration, tmp_path, "-P", "solo"):
            assert site.send("skip", stage.path).get(timeout=20) == "did end"
            assert site.witness.holders() == 1
        site.assert_all_free()


def test_greenlets_that_wait_for_locks_do_not_halt_the_others(tmp_path: Path) -> None:
    """Psycopg 3: fifty bodies with keys of their own, each with one that waits, show signs of life all the time."""
    with (
        open_site("rabbitmq", "postgresql", tmp_path) as site,
        Worker("many", site.configuration, tmp_path, "-P", "gevent", "-c", "120"),
    ):
        stages = [Stage(tmp_path / f"stage{number}") for number in range(50)]
        results = [site.send("patient", stage.path, do) for do in ("sleep 2", "end") for stage in stages]
        assert {result.get(timeout=60) for result in results} == {"did sleep 2", "did end"}
        for stage in stages:
            stage.assert_no_overlap()
            assert max(later - sooner for sooner, later in pairwise(stage.signs())) < 1
        site.assert_all_free()


@pytest.mark.parametrize(
    ("pool", "drivername", "way_out"),
    [
        ("gevent", "postgresql+psycopg2", "use psycopg (version 3)"),
        ("eventlet", "postgresql+psycopg", "use a gevent worker"),
    ],
)
def test_what_would_halt_all_greenlets_is_refused(
    pool: str, drivername: str, way_out: str, tmp_path: Path, stage: Stage
) -> None:
    """With the way out."""
    with open_site("filesystem", "postgresql", tmp_path) as site:
        site.configuration["dlock_url"] = server("postgresql").url(drivername)
        with Worker("halting", site.configuration, tmp_path, "-P", pool, "-c", "4"):
            result = site.send("skip", stage.path)
            site.wait_for_state(result, "FAILURE")
            assert way_out in str(result.result)
        assert not stage.runs()


def test_children_of_a_parent_with_a_used_pool_have_sessions_of_their_own(tmp_path: Path, stage: Stage) -> None:
    """An engine that had a connection before the fork: shared, it would let both children in."""
    with open_site("filesystem", "postgresql", tmp_path) as site:
        site.configuration["engine_in_parent"] = True
        with Worker("forked", site.configuration, tmp_path, "-P", "prefork", "-c", "2"):
            results = [site.send("patient", stage.path, "sleep 0.05") for _ in range(10)]
            assert {result.get(timeout=30) for result in results} == {"did sleep 0.05"}
            two = [Stage(tmp_path / "one"), Stage(tmp_path / "other")]
            for each in two:
                site.send("skip", each.path, "hold")
                each.wait_for_runs(1)
            assert isinstance(site.witness, PostgreSQLWitness)
            assert len(site.witness.all("SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory'")) == 2
            for each in two:
                each.open()
            site.assert_all_free()
        stage.assert_no_overlap()


def test_a_wait_on_psycopg2_ends_with_the_soft_limit_and_takes_no_lock_later(tmp_path: Path, stage: Stage) -> None:
    """It waits in C, where no signal is heard; the limit is one second, and the holder stays longer."""
    with open_site("filesystem", "postgresql", tmp_path) as site:
        site.configuration["dlock_url"] = server("postgresql").url("postgresql+psycopg2")
        with Worker("deaf", site.configuration, tmp_path, "-c", "2"):
            site.send("skip", stage.path, "hold")
            stage.wait_for_runs(1)
            waiting = site.send("patient", stage.path, soft_time_limit=1)
            site.wait_for_state(waiting, "FAILURE", seconds=5)
            assert "SoftTimeLimitExceeded" in repr(waiting.result)
            wait_until(lambda: site.witness.waiters() == 0, "no wait at the server")
            stage.open()
            site.assert_all_free()
        assert len(stage.runs()) == 1
