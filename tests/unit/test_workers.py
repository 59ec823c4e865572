"""The daemon threads: as many as jobs, reused, and gone when idle or when the program ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from dlock_core.sessions import workers as threads
from dlock_core.sessions.workers import Serial, Workers
from tests.ids import stable

N = 12


class Thing:
    """Something that a weak reference can watch."""


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fail after ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """A crew whose threads all end after the test, so that none outlives it."""
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.2)
    crew = Workers()
    before = set(threading.enumerate())
    yield crew
    until(lambda: not [t for t in set(threading.enumerate()) - before if t.name == "dlock-worker"])


def rest(workers: Workers, count: int) -> None:
    """Wait until so many threads are idle: a future is done a moment before its thread is."""
    until(lambda: len(workers._idle) == count)


def test_jobs_that_block_run_at_the_same_time(workers: Workers) -> None:
    """No job queues behind another: all meet, or none would end."""
    meeting = threading.Barrier(N)
    futures = [workers.submit(lambda: meeting.wait(10)) for _ in range(N)]
    assert sorted(future.result(10) for future in futures) == list(range(N))


def test_a_job_runs_while_all_threads_block(workers: Workers) -> None:
    """A release comes through beside any number of waits."""
    release = threading.Event()
    blocked = [workers.submit(lambda: release.wait(10)) for _ in range(N)]
    assert workers.submit(lambda: "at once").result(5) == "at once"
    release.set()
    assert all(future.result(5) for future in blocked)


def test_a_job_may_wait_for_a_job(workers: Workers) -> None:
    """What runs in a thread of the crew can use the crew."""
    assert workers.submit(lambda: workers.submit(lambda: 42).result(5)).result(5) == 42


def test_jobs_one_after_another_share_one_thread(workers: Workers) -> None:
    """An idle thread is used before a new one is made."""
    idents = set()
    for _ in range(20):
        idents.add(workers.submit(threading.get_ident).result(5))
        rest(workers, 1)
    assert len(idents) == 1


def test_a_second_burst_of_jobs_makes_no_more_threads(workers: Workers) -> None:
    """As many threads as jobs at one time, not as jobs in all."""
    bursts = []
    for _ in range(2):
        meeting = threading.Barrier(N)

        def meet(meeting: threading.Barrier = meeting) -> int:
            meeting.wait(10)
            return threading.get_ident()

        bursts.append({future.result(10) for future in [workers.submit(meet) for _ in range(N)]})
        rest(workers, N)
    assert bursts[0] == bursts[1]
    assert len(bursts[0]) == N


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=stable)
def test_an_exception_reaches_its_future_and_no_other(workers: Workers, error: BaseException) -> None:
    """Whatever it is, it belongs to the asker; the thread works on."""

    def fail() -> None:
        raise error

    future = workers.submit(fail)
    assert future.exception(5) is error
    rest(workers, 1)
    assert workers.submit(lambda: "well").result(5) == "well"


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
def test_an_idle_thread_ends_after_its_time_and_the_next_job_finds_another(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A quiet program has no threads of ours; nothing of the ended one stays in the crew."""
    monkeypatch.setattr(threads, "IDLE_SECONDS", seconds)
    first = workers.submit(threading.current_thread).result(5)
    first.join(10)
    assert not first.is_alive()
    assert workers._idle == []
    assert workers.submit(threading.current_thread).result(5) is not first


def test_a_job_that_meets_a_thread_about_to_end_is_not_lost(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is answered, whichever of the two is faster."""
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.0005)
    used = set()
    for number in range(400):
        assert workers.submit(lambda number=number: number).result(5) == number  # type: ignore[misc]
        used.add(workers.submit(threading.current_thread).result(5))
        time.sleep(0.0005 * (number % 3))
    assert 1 < len(used) < 800


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nothing refers to goes, at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_an_idle_thread_keeps_neither_the_job_nor_its_result(workers: Workers) -> None:
    """A session in a result or an argument must not live on for IDLE_SECONDS."""
    argument, result = Thing(), Thing()
    seen = [weakref.ref(argument), weakref.ref(result)]

    def answer(_given: Thing = argument, made: list[Thing] = [result]) -> Thing:  # noqa: B006 - it is emptied
        return made.pop()

    future = workers.submit(answer)
    assert future.result(5) is result
    rest(workers, 1)
    del argument, result, answer, future
    assert [ref() for ref in seen] == [None, None]
    assert len(workers._idle) == 1


@pytest.mark.usefixtures("no_collector")
def test_an_exception_goes_when_its_last_user_goes(workers: Workers) -> None:
    """Its traceback holds the job's variables, a session perhaps: it must not wait for the collector."""
    seen = []

    def fail() -> None:
        thing = Thing()
        seen.append(weakref.ref(thing))
        raise ValueError("no")

    future = workers.submit(fail)
    until(future.done)
    rest(workers, 1)
    del future
    assert seen[0]() is None


def test_a_job_is_forgotten_before_its_waiter_goes_on(workers: Workers) -> None:
    """The waiter may forget a lock, which is free at once only if nothing else refers to it."""
    gate, seen = threading.Event(), list[object]()
    thing = Thing()
    kept = weakref.ref(thing)
    future = workers.submit(partial(lambda _: gate.wait(10), thing))
    future.add_done_callback(lambda _: seen.append(kept()))
    del thing
    gate.set()
    until(lambda: seen)
    assert seen == [None]


PROGRAM = """
import threading
from dlock_core.sessions.workers import Workers

started = threading.Event()

def block():
    started.set()
    threading.Event().wait()

crew = Workers()
futures = [crew.submit(block) for _ in range(3)]
started.wait()
print("end of program", flush=True)
"""


def test_a_program_ends_while_its_workers_block() -> None:
    """A wait that is not needed any more holds up no exit, and says nothing on the way out."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "end of program\n", "")


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serial]:
    """A thread for jobs in order, which ends after the test."""
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.05)
    yield Serial("serial-of-a-test")
    until(lambda: not [t for t in threading.enumerate() if t.name == "serial-of-a-test"])


def test_jobs_in_order_run_in_one_thread_one_after_the_other(serial: Serial) -> None:
    """Also those that come while it is about to end."""
    done: list[tuple[int, int]] = []
    for number in range(300):
        serial.put(lambda number=number: done.append((number, threading.get_ident())))  # type: ignore[misc]
        if number % 100 == 99:
            until(lambda: not serial._running.locked())
    until(lambda: len(done) == 300)
    assert [number for number, _ in done] == list(range(300))
    assert len([t for t in threading.enumerate() if t.name == "serial-of-a-test"]) <= 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_one_of_the_jobs_in_order_raises_is_logged(
    serial: Serial, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """The next job runs all the same."""
    done = threading.Event()

    def fail() -> None:
        raise error

    serial.put(fail)
    serial.put(done.set)
    assert done.wait(10)
    assert repr(error) in caplog.text or str(error) in caplog.text


def refuse(*_: object) -> None:
    """Refuse as the system does at its limit of threads."""
    raise RuntimeError("can't start new thread")


def test_a_job_waits_for_a_thread_that_cannot_be_started_now(serial: Serial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call starts the thread, and finds all jobs in their order."""
    done: list[int] = []
    with monkeypatch.context() as limit:
        limit.setattr(threads, "start_new_thread", refuse)
        serial.put(lambda: done.append(1))
        serial.put(lambda: done.append(2))
    assert serial.stuck
    assert done == []
    serial.start()
    until(lambda: done == [1, 2])
    assert not serial.stuck


def test_what_is_left_of_the_jobs_in_order_runs_at_the_end_of_the_program(
    serial: Serial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread that ends it."""
    done: list[int] = []
    monkeypatch.setattr(threads, "start_new_thread", refuse)
    serial.put(lambda: done.append(threading.get_ident()))
    serial.finish()
    assert done == [threading.get_ident()]
