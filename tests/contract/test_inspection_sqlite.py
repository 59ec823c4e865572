"""What SQLite's holders write about themselves, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlock_core import LockLostError, LockProvider
from dlock_core.dialects.sqlite_files import NOTES, FileLocks
from tests.servers import wait_until

HOLD = """
import os, sys
from dlock_core import LockProvider
lock = LockProvider(sys.argv[1], adapter="shell").lock("nightly-report", shared="shared" in sys.argv)
print(lock.acquire(timeout=5), flush=True)
if "fork" in sys.argv and os.fork():
    os.kill(os.getpid(), 9)
sys.stdin.read()
try:
    lock.release()
except Exception as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database that is not there yet."""
    return f"sqlite:///{tmp_path / 'app.db'}"


@pytest.fixture
def locks(url: str) -> Iterator[LockProvider]:
    """Locks beside it."""
    with LockProvider(url) as provider:
        yield provider


class Holder:
    """Another process that holds."""

    def __init__(self, url: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, url, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "True\n"

    def leave(self) -> str:
        """Let it release and end; return what it says then."""
        return self.process.communicate("")[0]


def files(tmp_path: Path) -> list[Path]:
    """Return what holders have written."""
    return list((tmp_path / "app.db.dlock").glob(f"*{NOTES}"))


def test_another_process_is_seen_as_the_holder(url: str, locks: LockProvider) -> None:
    """By its process number and the name of its adapter."""
    holder = Holder(url)
    (info,) = locks.inspect()
    assert (info.key, info.pid, info.adapter) == ("nightly-report", holder.process.pid, "shell")
    assert holder.leave() == ""
    assert locks.inspect() == []


def test_what_a_killed_process_wrote_is_not_believed(url: str, locks: LockProvider, tmp_path: Path) -> None:
    """Its lock is free, and its file goes."""
    holder = Holder(url)
    holder.process.kill()
    holder.process.communicate()
    assert locks.inspect() == []
    assert files(tmp_path) == []


def test_a_forked_child_does_not_make_its_dead_parent_look_alive(url: str, locks: LockProvider) -> None:
    """The child has a copy of every descriptor, but not of the lock."""
    holder = Holder(url, "fork")
    assert holder.process.wait(10) == -signal.SIGKILL
    wait_until(lambda: locks.inspect() == [], "the child to close its copy", 10)
    holder.leave()


def test_looking_takes_no_lock_away(url: str, locks: LockProvider) -> None:
    """It opens no lock file, and would do no harm."""
    with locks.lock("nightly-report"):
        for _ in range(3):
            (info,) = locks.inspect()
        assert info.pid == os.getpid()
        with LockProvider(url) as stranger:
            assert not stranger.lock("nightly-report").acquire(timeout=0)


def test_terminating_another_process_s_lock_is_no_silent_loss(url: str, locks: LockProvider) -> None:
    """It learns when it releases, at the latest."""
    holder = Holder(url)
    (info,) = locks.inspect()
    assert locks.terminate(info)
    with locks.lock("nightly-report", timeout=5):
        assert holder.leave() == "LockLostError\n"


def test_terminating_one_reader_speaks_of_the_others(url: str, locks: LockProvider) -> None:
    """They share one file, which goes."""
    readers = [Holder(url, "shared"), Holder(url, "shared")]
    info = locks.inspect()[0]
    assert info.other_locks == 1
    with pytest.raises(ValueError, match="1 more that share this lock"):
        locks.terminate(info)
    assert locks.terminate(info, whole_session=True)
    with locks.lock("nightly-report", timeout=5):
        assert [reader.leave() for reader in readers] == ["LockLostError\n"] * 2


def test_waiting_ends_in_the_eyes_of_others_when_the_waiter_leaves(url: str, locks: LockProvider) -> None:
    """It says every moment that it still waits."""
    holder = Holder(url)
    waiter = LockProvider(url)
    waiting = waiter._coordinator.workers.submit(lambda: waiter.lock("nightly-report", timeout=1).acquire())
    wait_until(lambda: len(locks.inspect()[0].waiters) == 1, "the waiter to be seen", 10)
    assert waiting.result(10) is False
    wait_until(lambda: locks.inspect()[0].waiters == (), "the waiter to be gone", 10)
    waiter.close()
    holder.leave()


def test_a_folder_where_no_notes_can_be_written_costs_no_lock(
    url: str, locks: LockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for people only."""
    with locks.lock("nightly-report"):
        pass

    def fail(self: FileLocks, path: Path) -> Path:
        raise PermissionError(path)

    monkeypatch.setattr(FileLocks, "draft", fail)
    with LockProvider(url) as stranger, stranger.lock("nightly-report"):
        assert stranger.inspect() == []
        assert not locks.lock("nightly-report").acquire(timeout=0)


def test_a_closed_provider_leaves_no_notes(url: str, tmp_path: Path) -> None:
    """Its file goes with it."""
    with LockProvider(url) as locks, locks.lock("nightly-report"):
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []


def test_holding_many_locks_and_releasing_them_in_any_order_keeps_the_lines_apart(locks: LockProvider) -> None:
    """A blank line serves the next lock."""
    held = [locks.lock(("order", number)) for number in range(20)]
    for lock in held:
        assert lock.acquire()
    for lock in held[::2]:
        lock.release()
    assert {info.key for info in locks.inspect()} == {f"order:{number}" for number in range(1, 20, 2)}
    with pytest.raises(LockLostError), locks.lock("é" * 500, timeout=0):
        (info,) = [one for one in locks.inspect() if (one.key or "").startswith("é")]
        assert locks.terminate(info)
    for lock in held[1::2]:
        lock.release()


def test_checks_again_and_again_leave_one_file(url: str, locks: LockProvider) -> None:
    """SQLite keeps an empty file for each key that was ever locked."""
    assert all(finding.ok is not False for _ in range(3) for finding in locks.check())
    folder = Path(f"{url.removeprefix('sqlite:///')}.dlock")
    assert len(list(folder.iterdir())) <= 2
