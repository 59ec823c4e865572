"""The server takes the lock away while the body runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlock_core import LockLostError
from tests.servers import wait_until

from .sites import Site, open_site
from .stage import Stage
from .workers import Worker


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose sessions a test may end."""
    with open_site("redis", request.param, tmp_path_factory.mktemp("site")) as opened:
        opened.configuration["dlock_send_events"] = True
        yield opened


def _lose(site: Site, worker: Worker, stage: Stage, choice: str) -> str:
    """Let a task lose its lock in its body; return its id."""
    result = site.send(f"lost_{choice}", stage.path, "swallow" if choice == "terminate" else "hold")
    stage.wait_for_runs(1)
    site.witness.break_lock()
    wait_until(lambda: bool(worker.lines("ERROR", "lost the lock", result.id)), "the loss to be logged", 5)
    task_id: str = result.id
    return task_id


def test_a_loss_is_logged_and_the_body_goes_on(site: Site, worker: Worker, stage: Stage) -> None:
    """The default: the work may still be good."""
    task_id = _lose(site, worker, stage, "log")
    stage.open()
    assert site.app.AsyncResult(task_id).get(timeout=20) == "did hold"


def test_a_task_that_lost_its_lock_fails_if_it_said_so(site: Site, worker: Worker, stage: Stage) -> None:
    """When its body has ended."""
    task_id = _lose(site, worker, stage, "raise")
    stage.open()
    with pytest.raises(LockLostError):
        site.app.AsyncResult(task_id).get(timeout=20)


@pytest.mark.slow
def test_a_body_that_lost_its_lock_is_interrupted_if_it_said_so(site: Site, worker: Worker, stage: Stage) -> None:
    """Although it swallows the interrupt, the task fails; the next ones in that process are not hurt."""
    task_id = _lose(site, worker, stage, "terminate")
    with pytest.raises(LockLostError):
        site.app.AsyncResult(task_id).get(timeout=20)
    assert stage.runs()[0].ended
    results = [site.send("patient", stage.path) for _ in range(10)]
    assert {result.get(timeout=20) for result in results} == {"did end"}


def test_events_of_the_worker_tell_what_happens(site: Site, worker: Worker, stage: Stage) -> None:
    """With `dlock_send_events`, for monitors."""
    heard: list[tuple[str, str]] = []
    with site.app.connection_for_read() as connection:
        receiver = site.app.events.Receiver(
            connection, handlers={"*": lambda event: heard.append((event["type"], event.get("key")))}
        )
        listener = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        listener.start()
        site.send("skip", stage.path, "hold")
        stage.wait_for_runs(1)
        assert site.send("skip", stage.path).get(timeout=20) is None
        site.witness.break_lock()
        stage.open()
        site.send("patient", stage.path).get(timeout=20)
        wanted = {f"dlock-{what}" for what in ("acquired", "conflict", "lost", "released")}
        wait_until(lambda: wanted <= {kind for kind, key in heard if key == stage.path}, "all events")
        receiver.should_stop = True
        listener.join(10)


def test_a_warm_shutdown_lets_the_body_end_under_its_lock(tmp_path: Path, stage: Stage) -> None:
    """SIGTERM to the worker: nothing frees the lock of a body that still runs."""
    with open_site("redis", "postgresql", tmp_path) as site:
        with Worker("leaving", site.configuration, tmp_path, "-c", "1") as worker:
            result = site.send("skip", stage.path, "hold")
            stage.wait_for_runs(1)
            worker.process.terminate()
            wait_until(lambda: bool(worker.lines("Warm shutdown")), "the worker to hear it")
            assert site.witness.holders() == 1
            stage.open()
            worker.process.wait(20)
        assert result.get(timeout=5) == "did hold"
        site.assert_all_free()


def test_a_cold_shutdown_frees_the_lock(tmp_path: Path, stage: Stage) -> None:
    """SIGQUIT to the worker ends the body too."""
    with open_site("redis", "postgresql", tmp_path) as site:
        with Worker("leaving", site.configuration, tmp_path, "-c", "1") as worker:
            site.send("skip", stage.path, "hold")
            stage.wait_for_runs(1)
            worker.process.send_signal(signal.SIGQUIT)
            worker.process.wait(20)
        site.assert_all_free()
