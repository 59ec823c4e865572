"""Tasks that shall not overlap: locked where they run, or where they are sent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery_once import AlreadyQueued

from tests.celery.sites import REDIS_URL, Site, open_site
from tests.celery.stage import Stage
from tests.celery.workers import Worker
from tests.servers import wait_until

from .shop import FIRST, make_app

LIBRARIES = ("dlock_celery", "celery-once", "celery-singleton")
AT_SENDING = ("celery-once", "celery-singleton")
# What each says of the time after which a lock is given up, when nothing else was said; -1 is never.
DEFAULT_EXPIRY = {"celery-once": 3600, "celery-singleton": -1}
# Expiries in seconds: shorter than the work, and longer than the test.
SHORT, LONG = 1, 100


class Shop:
    """The three kinds of tasks at one broker, with one worker."""

    def __init__(self, site: Site, worker: Worker, app: Celery, client: redis.Redis) -> None:
        self.site = site
        self.worker = worker
        self.app = app
        self.client = client

    def send(self, library: str, stage: Stage, do: str = "hold", **options: Any) -> Any:
        """Send a message as an application does, through the task; None when the library refuses to."""
        with suppress(AlreadyQueued):
            return self.app.tasks[library].apply_async((stage.path, do), **options)
        return None

    def send_by_name(self, library: str, stage: Stage) -> Any:
        """Send a message as a program does that cannot import the task."""
        return self.app.send_task(library, (stage.path, "hold"))

    def set_expiry(self, patch: pytest.MonkeyPatch, library: str, seconds: int) -> None:
        """Say when the next locks shall expire that are taken here."""
        task: Any = self.app.tasks[library]
        if library == "celery-once":
            patch.setattr(task, "once", {**task.once, "timeout": seconds})
        else:
            patch.setattr(task, "lock_expiry", seconds)

    def at_rest(self, stage: Stage) -> bool:
        """Tell whether each body has ended, or its process was killed."""
        alive = self.worker.children()
        return all(run.ended or run.pid not in alive for run in stage.runs())

    def queued(self, queue: str) -> int:
        """Return how many messages are in a queue, by the broker."""
        return int(self.client.llen(f"{self.site.name}:{queue}"))

    def expiries(self, stage: Stage) -> list[int]:
        """Return for each lock in Redis on a stage in how many seconds it expires; -1 is never."""
        return [int(self.client.ttl(key)) for key in self.locks(stage)]

    def locks(self, stage: Stage) -> list[bytes]:
        """Return the keys of the locks in Redis on a stage."""
        # celery-once's keys name the arguments; celery-singleton's hide them, and name the site.
        marks = (stage.path.encode(), f"{self.site.name}:singleton:".encode())
        return [key for key in self.client.scan_iter(count=1000) if any(mark in key for mark in marks)]


@contextmanager
def open_shop(client: redis.Redis, folder: Path) -> Iterator[Shop]:
    """Open a shop on Redis, with a worker of three processes."""
    with open_site("redis", "postgresql", folder) as site:
        configuration = {
            **site.configuration,
            "ONCE": {"backend": "celery_once.backends.Redis", "settings": {"url": REDIS_URL}},
            "singleton_backend_url": REDIS_URL,
            "singleton_key_prefix": f"{site.name}:singleton:",
        }
        app = make_app(configuration)
        arguments = ("-P", "prefork", "-c", "3")
        with Worker("shop", configuration, site.folder, *arguments, app="tests.comparison.shop") as worker:
            yield Shop(site, worker, app, client)
        for library in AT_SENDING:  # whose connections are not closed
            task: Any = app.tasks[library]
            backend = task.once_backend if library == "celery-once" else task.singleton_backend
            backend.redis.close()
        results: Any = app.backend
        results.client.close()
        app.close()


@pytest.fixture(scope="module")
def shop(redis_client: redis.Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop for all tests that leave its worker alone."""
    with open_shop(redis_client, tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def stage(shop: Shop, tmp_path: Path) -> Iterator[Stage]:
    """A stage of this test's own; afterwards no body plays, and no lock is left."""
    made = Stage(tmp_path / "stage")
    yield made
    made.open()
    wait_until(lambda: shop.at_rest(made), "the bodies to end")
    for key in shop.locks(made):
        shop.client.delete(key)
    shop.site.assert_all_free()


def asleep(library: str, shop: Shop) -> str:
    """Return a queue that nothing consumes."""
    return f"{shop.site.name}.asleep.{library}"


@pytest.mark.parametrize("library", AT_SENDING)
def test_a_duplicate_does_not_enter_the_queue(library: str, shop: Shop, stage: Stage) -> None:
    """The queue stays short, however often the task is sent."""
    queue = asleep(library, shop)
    sent = [shop.send(library, stage, queue=queue) for _ in range(5)]
    assert shop.queued(queue) == 1
    ids = {result and result.id for result in sent[1:]}
    assert ids == ({sent[0].id} if library == "celery-singleton" else {None})


@pytest.mark.parametrize("library", ["dlock_celery"])
def test_each_duplicate_enters_the_queue(library: str, shop: Shop, stage: Stage) -> None:
    """The lock is taken where the task runs, so each message waits to be skipped there."""
    queue = asleep(library, shop)
    assert all(shop.send(library, stage, queue=queue) for _ in range(5))
    assert shop.queued(queue) == 5
    assert shop.site.witness.holders() == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_after_a_purge_of_the_queue(library: str, shop: Shop, stage: Stage) -> None:
    """A message that is gone leaves the lock behind that was taken when it was sent."""
    queue = f"{asleep(library, shop)}.purged"
    assert shop.send(library, stage, queue=queue)
    with shop.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        assert channel.queue_purge(queue) == 1
    shop.send(library, stage, queue=queue)
    locked_at_sending = library in AT_SENDING
    assert shop.queued(queue) == (0 if locked_at_sending else 1)
    assert len(shop.locks(stage)) == (1 if locked_at_sending else 0)


class TestDeaths:
    """Each with a worker of its own: Celery's pool may lose what comes after the death of one of its processes."""

    @pytest.fixture
    def shop(self, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Shop]:
        """A shop for one test."""
        with open_shop(redis_client, tmp_path) as shop:
            yield shop

    def test_a_task_whose_process_was_killed_runs_again_at_once(self, shop: Shop, stage: Stage) -> None:
        """The server frees the lock with the session of the process."""
        shop.send("dlock_celery", stage)
        (run,) = stage.wait_for_runs(1)
        assert shop.site.witness.holders() == 1
        os.kill(run.pid, signal.SIGKILL)
        wait_until(lambda: shop.site.witness.holders() == 0, "the server to see the death")
        shop.send("dlock_celery", stage)
        stage.wait_for_runs(2)

    @pytest.mark.parametrize("library", AT_SENDING)
    def test_a_task_whose_process_was_killed_stays_locked(self, library: str, shop: Shop, stage: Stage) -> None:
        """For the expiry, an hour, or indefinitely where there is none by default."""
        first = shop.send(library, stage)
        (run,) = stage.wait_for_runs(1)
        os.kill(run.pid, signal.SIGKILL)
        shop.site.wait_for_state(first, "FAILURE")
        second = shop.send(library, stage)
        assert second is None or second.id == first.id
        (expiry,) = shop.expiries(stage)
        wanted = DEFAULT_EXPIRY[library]
        assert wanted - 60 < expiry <= wanted
        assert len(stage.runs()) == 1


@pytest.mark.parametrize("library", AT_SENDING)
def test_work_longer_than_the_expiry_overlaps_with_the_next(
    library: str, shop: Shop, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the end of the first deletes the lock of the second, which is still at work."""
    shop.set_expiry(monkeypatch, library, SHORT)
    first = shop.send(library, stage, "first")
    stage.wait_for_runs(1)
    wait_until(lambda: not shop.locks(stage), "the lock to expire", 10 * SHORT)
    shop.set_expiry(monkeypatch, library, LONG)
    shop.send(library, stage)
    stage.wait_for_runs(2)
    wait_until(lambda: overlap(stage), "both to be at work")
    assert len(shop.locks(stage)) == 1
    Path(stage.path, FIRST).touch()
    shop.site.wait_for_state(first, "SUCCESS")
    wait_until(lambda: not shop.locks(stage), "the second's lock to be deleted", LONG / 2)
    assert [run.ended for run in stage.runs()] == [True, False]


@pytest.mark.parametrize("library", AT_SENDING)
def test_a_task_that_is_sent_by_name_overlaps(library: str, shop: Shop, stage: Stage) -> None:
    """A program that does not import the task does not lock."""
    for _ in range(2):
        shop.send_by_name(library, stage)
    stage.wait_for_runs(2)
    wait_until(lambda: overlap(stage), "both to be at work")


def test_a_task_that_is_sent_by_name_is_locked(shop: Shop, stage: Stage) -> None:
    """The worker locks, whatever sent the message."""
    results = [shop.send_by_name("dlock_celery", stage) for _ in range(2)]
    stage.wait_for_runs(1)
    wait_until(lambda: any(result.state == "SUCCESS" for result in results), "one to be skipped")
    assert len(stage.runs()) == 1


@pytest.mark.parametrize("library", ["dlock_celery", "celery-once"])
def test_a_task_that_retries_runs_again(library: str, shop: Shop, stage: Stage) -> None:
    """Its own lock does not stand in its way."""
    stage.open()
    shop.send(library, stage, "retry")
    stage.wait_for_runs(2)


def test_a_task_of_celery_singleton_that_retries_never_runs_again(shop: Shop, stage: Stage, tmp_path: Path) -> None:
    """Its own lock keeps the message of the retry out of the queue, and is held indefinitely."""
    stage.open()
    result = shop.send("celery-singleton", stage, "retry")
    shop.site.wait_for_state(result, "RETRY")
    later = Stage(tmp_path / "later")
    later.open()
    shop.site.wait_for_state(shop.send("dlock_celery", later), "SUCCESS")
    assert result.state == "RETRY"
    assert shop.expiries(stage) == [-1]
    assert len(stage.runs()) == 1
    assert shop.send("celery-singleton", stage).id == result.id


def overlap(stage: Stage) -> bool:
    """Tell whether two bodies have been at work at the same time."""
    runs = sorted(stage.runs(), key=lambda run: run.began)
    return any(one.seen > other.began and other.seen > other.began for one, other in pairwise(runs))
