"""A broker gives a message out again while its first delivery still runs."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers import Proxy, wait_until

from .sites import broker_of, open_site
from .stage import Stage
from .workers import Worker

pytestmark = pytest.mark.slow  # workers that are killed, and pools of each kind


def test_a_copy_is_dropped_when_the_original_has_its_result(tmp_path: Path, stage: Stage) -> None:
    """RabbitMQ gives out again what a worker has that lost its connection; the body runs on there."""
    with open_site("rabbitmq", "postgresql", tmp_path) as site, Proxy(broker_of(site)) as proxy:
        cut_off = {**site.configuration, "broker_url": proxy.url("amqp")}
        with Worker("only", cut_off, tmp_path, "-c", "2") as worker:
            result = site.send("late", stage.path, "hold")
            stage.wait_for_runs(1)
            proxy.drop()
            wait_until(lambda: len(worker.lines(result.id, "trying again")) >= 2, "the copy to meet the lock")
            stage.open()
            wait_until(lambda: bool(worker.lines(result.id, "dropped")), "the copy to be dropped")
        assert result.get(timeout=5) == "did hold"
        assert len(stage.runs()) == 1
        site.assert_all_free()


def test_a_copy_runs_when_the_original_died(tmp_path: Path, stage: Stage) -> None:
    """The worker is killed, and its processes with it: the message is not skipped for its own dead delivery."""
    with open_site("rabbitmq", "postgresql", tmp_path) as site, ExitStack() as workers:
        first, second = (
            workers.enter_context(Worker(name, site.configuration, tmp_path, "-c", "1")) for name in ("one", "two")
        )
        result = site.send("late", stage.path, "hold")
        stage.wait_for_runs(1)
        victim = first if first.lines(result.id) else second
        os.kill(victim.process.pid, signal.SIGKILL)
        stage.wait_for_runs(2)
        stage.open()
        assert result.get(timeout=20) == "did hold"
        stage.assert_no_overlap()
        site.assert_all_free()


def test_redis_gives_out_again_what_takes_longer_than_its_visibility(tmp_path: Path, stage: Stage) -> None:
    """With a visibility timeout shorter than the body: one body, and its result stays."""
    with open_site("redis", "mariadb", tmp_path) as site:
        site.configuration["broker_transport_options"] |= {
            "visibility_timeout": 1,
            "unacked_restore_interval": 0.5,
            "unacked_restore_throttle": 1,
        }
        with Worker("only", site.configuration, tmp_path, "-c", "2") as worker:
            result = site.send("late", stage.path, "hold")
            stage.wait_for_runs(1)
            wait_until(lambda: len(worker.lines(result.id, "trying again")) >= 2, "the copy to meet the lock")
            stage.open()
            assert result.get(timeout=20) == "did hold"
            wait_until(lambda: bool(worker.lines(result.id, "dropped")), "the copy to be dropped")
        assert len(stage.runs()) == 1
        assert result.result == "did hold"
        site.assert_all_free()
