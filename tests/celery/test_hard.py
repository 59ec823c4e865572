"""The hard ones: killed again and again, a thousand messages, a beat that is faster than its task."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.pace import promptly
from tests.servers import wait_until

from .sites import open_site
from .stage import Stage
from .workers import ROOT, Worker, environment

pytestmark = pytest.mark.slow  # workers that are killed, and pools of each kind

# Each policy on one of the pairs; how many messages, and the states in which they may end.
CROWDS = {
    "skip": ("rabbitmq", "postgresql", 1000, {"SUCCESS"}),
    "raise": ("rabbitmq", "postgresql", 1000, {"SUCCESS", "FAILURE"}),
    "retry": ("rabbitmq", "postgresql", 200, {"SUCCESS"}),
    "patient": ("redis", "mariadb", 1000, {"SUCCESS"}),
    "revoke": ("redis", "mariadb", 1000, {"SUCCESS", "REVOKED"}),
    "reject": ("redis", "mariadb", 1000, {"SUCCESS", "FAILURE"}),
}
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


@pytest.mark.parametrize(("broker", "database"), [("rabbitmq", "postgresql"), ("redis", "mariadb")])
def test_after_each_of_twenty_kills_the_next_message_runs_within_a_second(
    broker: str, database: str, tmp_path: Path, stage: Stage
) -> None:
    """SIGKILL of the process in the body; nothing clears anything, and there are never two bodies.

    The most of them: the test's machine may be busy with something else for one.
    """
    delays = []
    with (
        open_site(broker, database, tmp_path) as site,
        Worker("killed", site.configuration, tmp_path, "-c", "3"),
    ):
        site.send("patient", stage.path, "hold")
        for number in range(1, 21):
            victim = stage.wait_for_runs(number)[-1]
            os.kill(victim.pid, signal.SIGKILL)
            killed = time.monotonic()
            site.send("patient", stage.path, "hold")
            delays.append(stage.wait_for_runs(number + 1)[-1].began - killed)
        stage.open()
        stage.assert_no_overlap()
        site.assert_all_free()
    assert promptly(statistics.quantiles(delays, n=10)[-2], 1), delays


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", CROWDS)
def test_a_crowd_of_messages_with_one_key_never_overlaps_and_all_end(policy: str, tmp_path: Path, stage: Stage) -> None:
    """Two workers of four processes."""
    broker, database, count, states = CROWDS[policy]
    with open_site(broker, database, tmp_path) as site:
        site.configuration["worker_prefetch_multiplier"] = 4
        with (
            Worker("one", site.configuration, tmp_path, "-c", "4"),
            Worker("two", site.configuration, tmp_path, "-c", "4"),
        ):
            with site.app.producer_pool.acquire() as producer:
                results = [site.send(policy, stage.path, producer=producer) for _ in range(count)]
            pending = {result.id for result in results}

            def all_ended() -> bool:
                pending.difference_update([one for one in pending if site.app.backend.get_state(one) in FINAL])
                return not pending

            wait_until(all_ended, f"{count} messages to end", 250)
            found = Counter(result.state for result in results)
            assert set(found) <= states
            stage.assert_no_overlap()
            bodies = len(stage.runs())
            ran = Counter(result.result for result in results if result.state == "SUCCESS")["did end"]
            assert bodies == ran > 0
            if policy in {"retry", "patient"}:
                assert bodies == count
            site.assert_all_free()


def test_a_beat_faster_than_its_task_never_overlaps_it(tmp_path: Path, stage: Stage) -> None:
    """Every second a task that takes three, sent by a beat that knows no tasks; each skip is logged."""
    with open_site("rabbitmq", "postgresql", tmp_path) as site:
        schedule = {"often": {"task": "skip", "schedule": 1.0, "args": [stage.path, "sleep 3"]}}
        beating = {**site.configuration, "beat_schedule": schedule, "without_tasks": True}
        with Worker("beaten", site.configuration, tmp_path, "-c", "3") as worker:
            command = [sys.executable, "-m", "celery", "-A", "tests.celery.project", "beat", "-s", str(tmp_path / "s")]
            with (tmp_path / "beat.log").open("wb") as log:
                beat = subprocess.Popen(command, cwd=ROOT, env=environment(beating), stdout=log, stderr=log)
            try:
                stage.wait_for_runs(3, seconds=60)
            finally:
                beat.terminate()
                beat.wait(20)
            stage.wait_for_runs(3, ended=True)

            def ended() -> int:
                return len(worker.lines("Task skip[", "succeeded"))

            wait_until(lambda: ended() == len(worker.lines("Task skip[", "received")), "all messages to end")
        stage.assert_no_overlap()
        skips = worker.lines("skipped: key", stage.path)
        assert len(skips) == ended() - len(stage.runs())
        assert len(skips) >= 4
        site.assert_all_free()
