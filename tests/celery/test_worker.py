"""A prefork worker runs tasks under locks: what becomes of the lock, however the body ends."""

from __future__ import annotations

import os
import signal

import pytest

from .sites import Site
from .stage import Stage
from .workers import Worker


def test_a_task_runs_once_and_leaves_no_lock(site: Site, worker: Worker, stage: Stage) -> None:
    """The plain case."""
    assert site.send("skip", stage.path).get(timeout=20) == "did end"
    assert len(stage.runs()) == 1


def test_a_second_message_is_skipped_while_the_first_runs(site: Site, worker: Worker, stage: Stage) -> None:
    """A third one too: the end of a skipped task frees no other's lock. The log names the holder."""
    first = site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    for _ in range(2):
        second = site.send("skip", stage.path)
        assert second.get(timeout=20) is None
        assert worker.lines("INFO", "skipped", second.id, stage.path, "is held by celery")
    stage.open()
    assert first.get(timeout=20) == "did hold"
    assert len(stage.runs()) == 1


def test_a_task_with_our_base_class_returns_its_skip_result(site: Site, worker: Worker, stage: Stage) -> None:
    """Options as attributes; the body knows that it is under a lock."""
    first = site.send("based", stage.path, "hold")
    stage.wait_for_runs(1)
    assert site.send("based", stage.path).get(timeout=20) == "skipped"
    stage.open()
    assert first.get(timeout=20) == "did hold"


@pytest.mark.parametrize("do", ["ignore", "reject", "fail"])
def test_the_lock_is_free_after_a_body_that_raises(site: Site, worker: Worker, stage: Stage, do: str) -> None:
    """Celery's own signs too."""
    site.send("skip", stage.path, do)
    stage.wait_for_runs(1, ended=True)
    assert site.send("wait", stage.path).get(timeout=20) == "did end"


def test_the_lock_is_free_after_a_body_that_exits(site: Site, worker: Worker, stage: Stage) -> None:
    """SystemExit ends the pool's process."""
    site.send("skip", stage.path, "exit")
    stage.wait_for_runs(1, ended=True)
    assert site.send("wait", stage.path).get(timeout=20) == "did end"


@pytest.mark.parametrize("countdown", ["0", "0.3"])
def test_a_retry_of_the_task_runs_after_its_first_attempt(
    site: Site, worker: Worker, stage: Stage, countdown: str
) -> None:
    """The retry may arrive while the first body still ends: it is not skipped for that."""
    assert site.send("skip", stage.path, f"retry {countdown}").get(timeout=20) == f"did retry {countdown}"
    assert len(stage.runs()) == 2
    stage.assert_no_overlap()


def test_a_revoked_message_leaves_no_lock(site: Site, worker: Worker, stage: Stage) -> None:
    """It never took one."""
    result = site.send("skip", stage.path, countdown=1.5)
    site.app.control.revoke(result.id)
    site.wait_for_state(result, "REVOKED")
    assert site.send("skip", stage.path).get(timeout=20) == "did end"
    assert len(stage.runs()) == 1


def test_the_next_task_runs_when_the_process_was_killed(site: Site, worker: Worker, stage: Stage) -> None:
    """SIGKILL in the body: nothing has to clear anything, and the message that waits goes on at once."""
    site.send("skip", stage.path, "hold")
    [first] = stage.wait_for_runs(1)
    waiting = site.send("patient", stage.path)
    os.kill(first.pid, signal.SIGKILL)
    assert waiting.get(timeout=20) == "did end"


def test_a_terminated_task_frees_its_lock(site: Site, worker: Worker, stage: Stage) -> None:
    """`revoke(terminate=True)`; the one that waits starts."""
    result = site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    waiting = site.send("patient", stage.path)
    site.app.control.revoke(result.id, terminate=True)
    assert waiting.get(timeout=20) == "did end"
    stage.assert_no_overlap()


def test_the_lock_is_held_until_a_task_over_its_hard_limit_has_ended(site: Site, worker: Worker, stage: Stage) -> None:
    """Celery tells the parent of the failure before the child has stopped."""
    result = site.send("skip", stage.path, "linger 1", time_limit=1)
    stage.wait_for_runs(1)
    waiting = site.send("patient", stage.path)
    site.wait_for_state(result, "FAILURE")
    assert waiting.get(timeout=20) == "did end"
    stage.assert_no_overlap()


def test_the_lock_is_free_after_a_soft_limit(site: Site, worker: Worker, stage: Stage) -> None:
    """SoftTimeLimitExceeded unwinds the body."""
    result = site.send("skip", stage.path, "hold", soft_time_limit=1)
    site.wait_for_state(result, "FAILURE")
    assert "SoftTimeLimitExceeded" in repr(result.result)
    assert site.send("skip", stage.path).get(timeout=20) == "did end"


def test_a_wait_ends_with_the_soft_limit_and_takes_no_lock_later(site: Site, worker: Worker, stage: Stage) -> None:
    """An interrupted wait must not be granted when the holder ends."""
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    waiting = site.send("patient", stage.path, soft_time_limit=1)
    site.wait_for_state(waiting, "FAILURE", seconds=5)
    stage.open()
    site.assert_all_free()
    assert len(stage.runs()) == 1


def test_calls_that_mean_the_same_have_one_key(site: Site, worker: Worker, stage: Stage) -> None:
    """By position, by name, and by default."""
    site.app.send_task("by_args", (stage.path,))
    stage.wait_for_runs(1)
    same = [((stage.path, "hold"), {}), ((), {"stage": stage.path, "number": 1}), ((stage.path, "hold", 1), {})]
    for args, kwargs in same:
        assert site.app.send_task("by_args", args, kwargs).get(timeout=20) is None
    assert site.app.send_task("by_args", (stage.path, "end", 2)).get(timeout=20) == "did end"


def test_nothing_runs_while_the_database_is_down(site: Site, worker: Worker, stage: Stage) -> None:
    """A task that cannot ask for its lock fails, and says why."""
    result = site.send("down_raise", stage.path)
    site.wait_for_state(result, "FAILURE")
    assert "LockConnectionError" in repr(result.result)
    again = site.send("down_retry", stage.path, expires=3)
    site.wait_for_state(again, "RETRY", "REVOKED")
    assert not stage.runs()
    assert site.send("down_run_unlocked", stage.path).get(timeout=20) == "did end"
    assert worker.lines("WARNING", "runs without a lock")
    site.wait_for_state(again, "REVOKED")
