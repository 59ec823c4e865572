"""What each `on_conflict` does to a message, and to what follows it in a chain or waits for it in a chord."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError

from dlock_celery import LockConflictError
from tests.servers import wait_until

from .sites import Site
from .stage import Stage
from .workers import Worker

# How a message ends whose key is held, and what becomes of the next in its chain and of its chord's body.
ENDS = {
    "skip": ("SUCCESS", "SUCCESS", "SUCCESS"),
    "wait": ("FAILURE", "FAILURE", "FAILURE"),
    "raise": ("FAILURE", "FAILURE", "FAILURE"),
    "revoke": ("REVOKED", "REVOKED", "FAILURE"),
    "reject": ("FAILURE", "FAILURE", "FAILURE"),
    "retry": ("SUCCESS", "SUCCESS", "SUCCESS"),
}


@pytest.mark.parametrize("policy", ENDS)
def test_a_conflict_ends_alone_in_a_chain_and_in_a_chord(
    site: Site, worker: Worker, stage: Stage, policy: str, tmp_path: Path
) -> None:
    """Nothing hangs; chord and chain go on, or end, with the message."""
    aside = Stage(tmp_path / "aside")
    holder = site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    locked, note = site.app.tasks[policy], site.app.tasks["note"]
    alone = locked.delay(stage.path)
    chained = chain(locked.si(stage.path), note.s(aside.path)).apply_async()
    body = chord([note.si("other", aside.path), locked.si(stage.path)])(note.s(aside.path))
    if policy == "retry":
        for result in (alone, chained.parent):
            site.wait_for_state(result, "RETRY")
        stage.open()
    for result, state in zip((alone, chained, body), ENDS[policy], strict=True):
        site.wait_for_state(result, state, seconds=30)
    assert _value(policy, alone, body)
    stage.open()
    assert holder.get(timeout=20) == "did hold"
    stage.assert_no_overlap()
    assert len(stage.runs()) == (4 if policy == "retry" else 1)


def _value(policy: str, alone: Any, body: Any) -> bool:
    """Look at what the results say."""
    match policy:
        case "skip":
            return alone.result is None and sorted(body.result, key=str) == [None, "other"]
        case "retry":
            return alone.result == "did end" and sorted(body.result) == ["did end", "other"]
        case "raise" | "wait":
            return isinstance(alone.result, LockConflictError) and isinstance(body.result, ChordError)
        case _:
            return isinstance(body.result, ChordError)


@pytest.mark.parametrize("policy", ["raise", "reject", "revoke", "skip", "wait"])
def test_autoretry_does_not_retry_a_conflict(site: Site, worker: Worker, stage: Stage, policy: str) -> None:
    """`autoretry_for=(Exception,)` is about the body, and retries that."""
    holder = site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    result = site.send(f"autoretry_{policy}", stage.path)
    site.wait_for_state(result, ENDS[policy][0])
    assert not worker.lines(result.id, "retry: Retry")
    stage.open()
    holder.get(timeout=20)
    failing = site.send(f"autoretry_{policy}", stage.path, "fail")
    site.wait_for_state(failing, "FAILURE")
    assert len(stage.runs()) == 3


def test_autoretry_and_a_retry_of_the_lock_count_apart(site: Site, worker: Worker, stage: Stage) -> None:
    """A message that met the lock several times still has its one automatic retry; each body is under the lock."""
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    failing = site.send("autoretry_retry", stage.path, "fail")
    wait_until(lambda: len(worker.lines(failing.id, "trying again")) >= 2, "two attempts")
    assert len(stage.runs()) == 1
    stage.open()
    site.wait_for_state(failing, "FAILURE")
    assert "TroubleError" in repr(failing.result)
    assert len(stage.runs()) == 3
    stage.assert_no_overlap()


@pytest.mark.parametrize("policy", ["raise", "reject", "revoke"])
def test_a_conflict_calls_an_errback_once(
    site: Site, worker: Worker, stage: Stage, policy: str, tmp_path: Path
) -> None:
    """Whether this package or the worker marks the task as failed."""
    aside = Stage(tmp_path / "aside")
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    result = site.send(policy, stage.path, link_error=site.app.tasks["note"].si("failed", aside.path))
    site.wait_for_state(result, ENDS[policy][0])
    aside.wait_for_runs(1, ended=True)
    for _ in range(3):  # a second errback would have been sent before these
        assert site.app.tasks["note"].delay("later", stage.path).get(timeout=20) == "later"
    assert len(aside.runs()) == 1


def test_a_retry_of_the_lock_leaves_the_tasks_own_retries(site: Site, worker: Worker, stage: Stage) -> None:
    """It met the lock more often than `max_retries`, and can still retry its body that often."""
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    result = site.send("budget", stage.path, "retry 0.1")
    wait_until(lambda: len(worker.lines(result.id, "trying again")) >= 3, "three attempts")
    stage.open()
    assert result.get(timeout=20) == "did retry 0.1"
    assert len(stage.runs()) == 3


def test_retries_of_the_lock_end_at_their_limit(site: Site, worker: Worker, stage: Stage) -> None:
    """With an error that tells all, also after the result backend."""
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    result = site.send("limited", stage.path)
    site.wait_for_state(result, "FAILURE")
    error = result.result
    assert isinstance(error, LockConflictError)
    assert (error.key, error.task, error.attempts) == (stage.path, "limited", 3)


def test_a_wait_ends_when_the_lock_is_free(site: Site, worker: Worker, stage: Stage) -> None:
    """And otherwise after its time, not before."""
    holder = site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    sent = time.monotonic()
    refused, granted = site.send("wait", stage.path), site.send("patient", stage.path)
    site.wait_for_state(refused, "FAILURE")
    assert time.monotonic() - sent >= 2
    assert isinstance(refused.result, LockConflictError)
    assert [(run.task_id, run.ended) for run in stage.runs()] == [(holder.id, False)]
    stage.open()
    assert granted.get(timeout=20) == "did end"
    assert holder.get(timeout=20) == "did hold"


@pytest.mark.parametrize("pair", [("rabbitmq", "postgresql")], ids="-".join, indirect=True, scope="module")
def test_a_rejected_message_reaches_the_dead_letter_queue(site: Site, worker: Worker, stage: Stage) -> None:
    """The other brokers have none."""
    live, dead = site.declare_dead_letters()
    site.send("skip", stage.path, "hold")
    stage.wait_for_runs(1)
    rejected = site.send("reject", stage.path, queue=live)
    wait_until(lambda: dead() == rejected.id, "the message to be dead-lettered")
