"""What only locks on files can suffer."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import LOCK_UN, flock
from itertools import takewhile
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from dlock_core import Lock, LockConnectionError, LockLostError, LockProvider, UnsafeEnvironmentError
from dlock_core.contrib.testing import MemoryDatabase
from dlock_core.dialects import sqlite as dialect
from dlock_core.dialects.sqlite import FileSession, MemoryLocks, MemorySession
from dlock_core.dialects.sqlite_files import NOTES, FileLocks
from tests.servers import wait_until

from .house import until

NOBODY = 65534


def _is_private(folder: Path) -> bool:
    return not folder.stat().st_mode & stat.S_IXOTH


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database file in a folder where all may write."""
    for folder in takewhile(_is_private, (tmp_path, *tmp_path.parents)):  # pytest's own, more of them in parallel
        folder.chmod(0o755)
    place = tmp_path / "data"
    place.mkdir()
    place.chmod(0o777)
    file = place / "app.db"
    sqlite3.connect(file).close()
    file.touch()
    file.chmod(0o666)
    return file


@pytest.fixture
def locks(database: Path) -> Iterator[LockProvider]:
    """Locks beside that database."""
    with LockProvider(f"sqlite:///{database}") as provider:
        yield provider


def lock_files(database: Path) -> list[Path]:
    """Return the lock files that exist."""
    return sorted(path for path in database.with_name("app.db.dlock").iterdir() if path.suffix != NOTES)


HOLD = """
import sys
from dlock_core import LockError, LockProvider
try:
    lock = LockProvider(sys.argv[1]).lock("k", shared="shared" in sys.argv)
    print(lock.acquire(timeout=0), flush=True)
except LockError as error:
    print(type(error).__name__, error, flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that tries once and stays."""

    def __init__(self, database: Path, *, shared: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, f"sqlite:///{database}", *["shared"] * shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.answer = self._process.stdout.readline().strip()

    def leave(self) -> None:
        """Let it end."""
        self._process.communicate("")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self._process.communicate()


def answer_of(database: Path) -> str:
    """Return what another process learns that tries once."""
    holder = Holder(database)
    holder.leave()
    return holder.answer


class User:
    """Another user's process, forked: it may not even read this Python."""

    def __init__(self, database: Path, uid: int, *, inspect: bool = False) -> None:
        answers, tell = os.pipe()
        stay, self._let_go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._let_go)
            os.write(tell, self._answer(database, uid, inspect=inspect).encode())
            os.close(tell)
            os.read(stay, 1)
            os._exit(0)
        os.close(tell)
        os.close(stay)
        with os.fdopen(answers) as file:
            self.answer = file.read()

    @staticmethod
    def _answer(database: Path, uid: int, *, inspect: bool) -> str:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            if inspect:
                return str(LockProvider(f"sqlite:///{database}").inspect())
            User.lock = LockProvider(f"sqlite:///{database}").lock("k")
            return str(User.lock.acquire(timeout=0))
        except BaseException as error:
            return f"{type(error).__name__} {error}"

    lock: Lock

    def leave(self) -> str:
        """Let it end, and return its answer."""
        os.close(self._let_go)
        os.waitpid(self._pid, 0)
        return self.answer


@pytest.fixture
def needs_root() -> None:
    """Only root can be two users."""
    if os.geteuid() != 0:
        pytest.skip("only root can run as another user")


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize("first", [0, NOBODY], ids=["root-first", "nobody-first"])
def test_two_users_exclude_each_other(database: Path, first: int) -> None:
    """Folder and files get the database's mode, so both may write; never two holders."""
    second = NOBODY - first
    holder = User(database, first)
    assert holder.answer == "True"
    assert User(database, second).leave() == "False"
    holder.leave()
    assert User(database, second).leave() == "True"
    assert {stat.S_IMODE(path.stat().st_mode) for path in lock_files(database)} == {0o666}
    assert stat.S_IMODE(database.with_name("app.db.dlock").stat().st_mode) == 0o777


@pytest.mark.usefixtures("needs_root")
def test_a_lock_file_that_may_only_be_read_is_refused(database: Path) -> None:
    """What may not write the database may not lock it."""
    holder = Holder(database)
    assert holder.answer == "True"
    for path in lock_files(database):
        path.chmod(0o644)
    answer = User(database, NOBODY).leave()
    assert answer.startswith("UnsafeEnvironmentError")
    assert "'k'" in answer
    assert "cannot be written by this user" in answer
    holder.leave()


@pytest.mark.usefixtures("needs_root")
def test_a_folder_that_cannot_be_written_is_refused(database: Path) -> None:
    """The error names the folder and says what to do."""
    database.parent.chmod(0o755)
    answer = User(database, NOBODY).leave()
    assert answer.startswith("UnsafeEnvironmentError")
    assert "app.db.dlock" in answer
    assert "let every user of the database write" in answer


@pytest.mark.usefixtures("needs_root")
def test_notes_that_may_not_be_read_are_no_empty_list(locks: LockProvider, database: Path) -> None:
    """The error names them."""
    with locks.lock("k"):
        [notes] = database.with_name("app.db.dlock").glob(f"*{NOTES}")
        notes.chmod(0o600)
        answer = User(database, NOBODY, inspect=True).leave()
    assert answer.startswith("NotPermittedError")
    assert str(notes) in answer


@pytest.mark.parametrize("planted", ["symlink to a file", "dangling symlink", "folder", "data"])
def test_something_planted_is_refused(locks: LockProvider, database: Path, tmp_path: Path, planted: str) -> None:
    """We neither lock nor touch what is not an empty file of ours."""
    with locks.lock("k"):
        [path] = lock_files(database)
    with locks.lock("other"):
        pass  # the place of "k" is kept open otherwise
    locks.close()
    path.unlink()
    target = tmp_path / "somebodys"
    if planted != "dangling symlink":
        target.write_text("precious")
    match planted:
        case "folder":
            path.mkdir()
        case "data":
            path.write_text("precious")
        case _:
            path.symlink_to(target)
    with (
        LockProvider(f"sqlite:///{database}") as again,
        pytest.raises(UnsafeEnvironmentError, match=r"'k'.*find out what made it"),
    ):
        again.lock("k").acquire()
    assert not target.exists() or target.read_text() == "precious"


def test_a_symlink_in_place_of_the_folder_is_refused(database: Path, tmp_path: Path) -> None:
    """Locks must have one place."""
    (tmp_path / "elsewhere").mkdir()
    database.with_name("app.db.dlock").symlink_to(tmp_path / "elsewhere")
    with (
        LockProvider(f"sqlite:///{database}") as locks,
        pytest.raises(UnsafeEnvironmentError, match="symbolic link"),
    ):
        locks.lock("k").acquire()


def test_a_lock_file_that_was_deleted_while_idle_is_made_again(locks: LockProvider, database: Path) -> None:
    """A tmp cleaner costs nothing between two uses."""
    with locks.lock("k"):
        pass
    for path in lock_files(database):
        path.unlink()
    with locks.lock("k"):
        assert answer_of(database) == "False"


def open_files(database: Path) -> list[str]:
    """Return what this process has open in the folder of locks."""
    folder = f"{database}.dlock{os.sep}"
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(folder)]


@pytest.mark.parametrize("held", [False, True], ids=["idle", "held"])
def test_a_closed_provider_has_no_file_open(database: Path, held: bool) -> None:
    """Not even those that it kept for the next use of their keys."""
    with LockProvider(f"sqlite:///{database}") as locks:
        lock = locks.lock("k")
        lock.acquire()
        with locks.lock("readers", shared=True):
            pass
        if not held:
            lock.release()
        assert open_files(database)
    assert open_files(database) == []


def test_an_abandoned_provider_has_no_file_open(database: Path) -> None:
    """It closes them itself: Python warns of a file that the collector of garbage has to close."""
    locks = LockProvider(f"sqlite:///{database}")
    with locks.lock("k"):
        pass
    assert open_files(database)
    del locks
    gc.collect()
    wait_until(lambda: open_files(database) == [], "the files to be closed", 10)


def test_a_lock_given_back_while_its_provider_closes_leaves_no_file_open(database: Path) -> None:
    """What is under way then must not bring its file back for the next use, nor write notes again."""
    files = FileLocks(database)
    session = FileSession(files, "dlock")
    assert session.acquire("k", shared=False, timeout=0, label=None)
    session.end()
    files.notes.close()
    with pytest.raises(LockLostError):
        session.release("k", shared=False)
    with pytest.raises(LockConnectionError, match="has ended"):
        session.acquire("k", shared=False, timeout=0, label=None)
    assert open_files(database) == []
    assert [path.name for path in database.with_name("app.db.dlock").iterdir()] == ["k"]


def test_a_killed_holder_leaves_nothing(locks: LockProvider, database: Path) -> None:
    """The operating system frees its lock."""
    holder = Holder(database)
    assert holder.answer == "True"
    assert not locks.lock("k").acquire(timeout=0)
    holder.kill()
    with locks.lock("k", timeout=5):
        pass


def test_all_ways_to_name_a_database_meet_at_one_lock(
    locks: LockProvider, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative path, `creator=`, URI name, a symlink to the database, and a later chdir."""
    monkeypatch.chdir(database.parent)
    database.with_name("alias.db").symlink_to(database)
    names = [
        LockProvider("sqlite:///app.db"),
        LockProvider("sqlite:///alias.db"),
        LockProvider(f"sqlite:///file:{database}?uri=true"),
        LockProvider(
            sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(database), poolclass=sa.pool.NullPool)
        ),
    ]
    monkeypatch.chdir("/")
    with locks.lock("k"):
        assert not any(other.lock("k").acquire(timeout=0) for other in names)
    for other in names:
        with other.lock("k", timeout=5):
            assert not locks.lock("k").acquire(timeout=0)
        other.close()


def test_a_database_that_does_not_exist_yet_can_be_locked(tmp_path: Path) -> None:
    """Its file is made, empty, as its first user would make it."""
    with LockProvider(f"sqlite:///{tmp_path / 'new.db'}") as locks, locks.lock("k"):
        assert (tmp_path / "new.db").exists()


def test_a_database_in_a_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    """The error names key and path."""
    with (
        LockProvider(f"sqlite:///{tmp_path / 'no' / 'app.db'}") as locks,
        pytest.raises(LockConnectionError, match=r"'k'.*no/app\.db.*Check the path"),
    ):
        locks.lock("k").acquire()


def test_the_file_stays_empty_and_names_no_key(locks: LockProvider, database: Path) -> None:
    """Nothing is ever written; no journal; only hashes for names."""
    with locks.lock("secret"), locks.lock("shared", shared=True):
        assert {path.stat().st_size for path in lock_files(database)} == {0}
        assert len(lock_files(database)) == 2
        assert not any("secret" in path.name or "journal" in path.name for path in lock_files(database))


def test_single_tries_at_one_moment_have_one_winner(locks: LockProvider, database: Path) -> None:
    """Two that try at once do not refuse each other."""
    with locks.lock("k"):
        pass  # makes the file
    program = (
        "import sys; from dlock_core import LockProvider\n"
        "locks = LockProvider(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    lock = locks.lock('k'); print(lock.acquire(timeout=0), flush=True)\n"
        "    sys.stdin.readline(); lock.close(); print('free', flush=True)"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{database}"]
    people = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for _ in range(300):
        assert _ask_all(people) == ["False", "True"]
        assert _ask_all(people) == ["free", "free"]
    for person in people:
        person.communicate()


def _ask_all(people: list[subprocess.Popen[str]]) -> list[str]:
    for person in people:
        assert person.stdin is not None
        person.stdin.write("go\n")
        person.stdin.flush()
    return sorted(person.stdout.readline().strip() for person in people if person.stdout is not None)


def test_opening_copying_and_closing_the_file_harms_no_lock(
    locks: LockProvider, database: Path, tmp_path: Path
) -> None:
    """Neither a backup in the holder's own process does, nor one in another."""
    copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
    with locks.lock("k") as lock:
        [path] = lock_files(database)
        for mode in ("rb", "r+b"):
            path.open(mode).close()
        shutil.copy2(path, tmp_path / "copy")
        shutil.copytree(path.parent, tmp_path / "here")
        subprocess.run([sys.executable, "-c", copy, str(path.parent), str(tmp_path / "there")], check=True)
        assert answer_of(database) == "False"
        assert lock.verify()
    assert answer_of(database) == "True"


def test_readers_of_two_processes_share_and_keep_a_writer_out(locks: LockProvider, database: Path) -> None:
    """Until the last one has left."""
    reader = Holder(database, shared=True)
    assert reader.answer == "True"
    with locks.lock("k", shared=True, timeout=0):
        assert answer_of(database) == "False"
        reader.leave()
        assert answer_of(database) == "False"
    assert answer_of(database) == "True"


IN_TURN = """
import random, sys, time
from dlock_core import LockProvider
locks = LockProvider(sys.argv[1])
print("ready", flush=True)
while True:
    with locks.lock("k", shared=sys.argv[2] == "shared"):
        time.sleep(random.uniform(0.01, 0.02))
"""


@pytest.mark.parametrize("crowd", ["shared", "exclusive"])
def test_a_waiter_gets_in_among_a_crowd_of_other_processes(locks: LockProvider, database: Path, crowd: str) -> None:
    """A writer where readers take turns so that one always reads, and a reader where writers leave no pause."""
    command = [sys.executable, "-c", IN_TURN, f"sqlite:///{database}", crowd]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for _ in range(3):
            with locks.lock("k", shared=crowd == "exclusive", timeout=10):
                pass
            time.sleep(0.1)  # the crowd comes back
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_waiter_that_is_gone_keeps_nothing_out(locks: LockProvider, database: Path) -> None:
    """Its mark counts for a moment; until then a single try still takes what is free."""
    name, since = str(locks.lock("k").actual_key), time.time() - 5
    with locks.lock("k"):
        pass

    def reader_is_refused() -> bool:
        FileLocks(database).mark(name, since, shared=False)
        with locks.lock("k", timeout=0):
            pass
        reader = locks.lock("k", shared=True)
        granted = reader.acquire(timeout=0)
        reader.close()
        return not granted

    until(reader_is_refused, "a try while the mark counts")
    for shared in (False, True):
        FileLocks(database).mark(name, since, shared=False)
        with locks.lock("k", shared=shared, timeout=5):
            pass


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_holder_learns_that_its_file_is_not_in_its_place(database: Path, replaced: bool) -> None:
    """Others lock the new file, so this is a loss."""
    lost: list[str] = []
    with LockProvider(f"sqlite:///{database}", on_lost=lambda lock: lost.append(str(lock.key))) as locks:
        lock = locks.lock("k")
        lock.acquire()
        [path] = lock_files(database)
        if replaced:
            new = path.with_suffix(".new")
            new.touch()
            new.chmod(0o666)
            new.replace(path)
        else:
            path.unlink()
        assert not lock.verify()
        assert answer_of(database) == "True"
        until(lambda: lost == ["k"], "the loss to be reported")
        with pytest.raises(LockLostError):
            lock.release()


def test_the_watch_notices_a_file_that_was_deleted(locks: LockProvider, database: Path) -> None:
    """Though nothing asks."""
    lock = locks.lock("k")
    lock.acquire()
    for path in lock_files(database):
        path.unlink()
    until(lambda: lock.lost, "the loss to be noticed")
    with pytest.raises(LockLostError):
        lock.release()


FORK = """
import ctypes, os, signal, sys
from dlock_core import LockProvider
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
lock = LockProvider(sys.argv[1]).lock("k")
assert lock.acquire(timeout=0)
fork = os.fork if sys.argv[2] == "python" else ctypes.PyDLL(None).fork
if fork() == 0:
    print("forked", flush=True)
    os.read(0, 1)
    os._exit(0)
signal.sigwait({signal.SIGUSR1})
lock.release()
print("released", flush=True)
signal.sigwait({signal.SIGUSR1})
"""


class ForkedHolder:
    """Another process that holds, with a forked child that lives on."""

    def __init__(self, database: Path, fork: str) -> None:
        command = [sys.executable, "-W", "ignore", "-c", FORK, f"sqlite:///{database}", fork]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"forked\n"

    def end_children(self) -> None:
        """Let the child end."""
        self.process.communicate()


def test_a_lock_of_a_killed_parent_is_free_while_its_child_lives(database: Path) -> None:
    """The child has closed its copies of the files, at the fork."""
    holder = ForkedHolder(database, "python")
    assert answer_of(database) == "False"
    holder.process.kill()
    holder.process.wait()
    assert answer_of(database) == "True"
    holder.end_children()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_has_no_copy_of_a_file_that_was_being_opened(locks: LockProvider, database: Path) -> None:
    """Whatever the other threads do at the moment of the fork."""
    over = threading.Event()

    def take(name: str) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            with locks.lock((name, number)):
                pass

    threads = [threading.Thread(target=take, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            child = os.fork()
            if child == 0:
                # A draft is never locked.
                os._exit(len([path for path in open_files(database) if ".draft" not in path]))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_child_that_c_code_forks_keeps_a_killed_parents_lock_until_it_ends(database: Path) -> None:
    """None of Python's hooks run there, so its copies stay open. The day this fails, the docs can say so."""
    holder = ForkedHolder(database, "c")
    holder.process.kill()
    holder.process.wait()
    assert answer_of(database) == "False"
    holder.end_children()
    wait_until(lambda: answer_of(database) == "True", "the child to end", 10)


def test_a_release_is_one_whatever_copies_a_child_has(database: Path) -> None:
    """It unlocks the file, which is more than to close it."""
    holder = ForkedHolder(database, "c")
    holder.process.send_signal(signal.SIGUSR1)
    assert holder.process.stdout is not None
    assert holder.process.stdout.readline() == b"released\n"
    assert answer_of(database) == "True"
    holder.process.kill()
    holder.end_children()


def test_more_locks_than_open_files_is_a_clear_error(database: Path) -> None:
    """The error names key, and the limit to raise."""
    program = (
        "import resource, sys; from dlock_core import Lock, LockConnectionError, LockProvider\n"
        "locks = LockProvider(sys.argv[1])\n"
        "with locks.lock('first'): pass\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "held = []\n"
        "try:\n"
        "    for n in range(60): lock = locks.lock(n); lock.acquire(); held.append(lock)\n"
        "except LockConnectionError as error: print(len(held), error)"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{database}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, _, message = answer.partition(" ")
    assert 20 <= int(count) < 40
    assert f"key {count}" in message
    assert "ulimit -n" in message


def test_an_in_memory_database_locks_within_its_engine() -> None:
    """Two providers of one engine exclude each other; two engines are two databases."""
    engine = sa.create_engine("sqlite://")
    one, same, other = LockProvider(engine), LockProvider(engine), LockProvider("sqlite://")
    with one.lock("k"):
        assert not same.lock("k").acquire(timeout=0)
        with other.lock("k", timeout=0):
            pass
    with same.lock("k", timeout=0):
        pass
    for provider in (one, same, other):
        provider.close()
    engine.dispose()


def test_engines_with_one_pool_share_a_database_in_memory() -> None:
    """And an engine keeps its locks when it gets a new pool."""
    engine = sa.create_engine("sqlite://")
    twin = sa.create_engine("sqlite://", pool=engine.pool)
    with LockProvider(engine) as one, LockProvider(twin) as same, one.lock("k"):
        assert not same.lock("k").acquire(timeout=0)
        engine.dispose()
        with LockProvider(engine) as later:
            assert not later.lock("k").acquire(timeout=0)
    engine.dispose()


def test_options_of_an_engine_do_not_make_another_database_in_memory() -> None:
    """They share pool and database, so they exclude each other."""
    engine = sa.create_engine("sqlite://")
    options = engine.execution_options(isolation_level="AUTOCOMMIT").execution_options(stream_results=True)
    with LockProvider(engine) as one, LockProvider(options) as same, one.lock("k"):
        assert not same.lock("k").acquire(timeout=0)
    engine.dispose()


def test_the_locks_of_a_named_database_in_memory_go_with_its_last_provider() -> None:
    """A test session with thousands of databases keeps none of them."""
    before = len(MemoryLocks._by_name)
    for _ in range(5):
        with MemoryDatabase() as database:
            one, other = database.provider(), database.provider()
            with one.lock("k"):
                assert not other.lock("k").acquire(timeout=0)
        del database, one, other

    def gone() -> bool:
        gc.collect()
        return len(MemoryLocks._by_name) <= before

    until(gone, "the threads of the providers to end")


def _end_while_locking(monkeypatch: pytest.MonkeyPatch, end: Callable[[], None]) -> None:
    """End the session when its file is locked and the grant is not noted yet, as a signal handler may."""

    def lock_then_end(file: IO[bytes], operation: int) -> None:
        flock(file, operation)
        if operation != LOCK_UN:
            end()

    monkeypatch.setattr(dialect, "flock", lock_then_end)


def test_a_grant_at_the_moment_of_the_end_is_not_believed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch saw that the file was replaced; what is locked afterwards is given up, and an error."""
    files = FileLocks(database)
    session = FileSession(files, "dlock")
    _end_while_locking(monkeypatch, session.end)
    with pytest.raises(LockConnectionError, match="has ended"):
        session.acquire("k", shared=False, timeout=0, label=None)
    assert session.ended
    assert open_files(database) == []


def test_an_ended_session_in_memory_holds_nothing() -> None:
    """As one that was ended at the moment of the grant."""
    locks = MemoryLocks()
    session = MemorySession(locks, "dlock")
    session.end()
    with pytest.raises(LockConnectionError, match="has ended"):
        session.acquire("k", shared=False, timeout=0, label=None)
    assert locks.held() == []


def in_own_mounts(mount: str, program: str, *words: str) -> str:
    """Run a program where something is mounted that no other sees; return what it says."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "mount:" in done.stderr:
        pytest.skip(f"this machine mounts nothing: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


CHECKED = """
import sys
from dlock_core import LockProvider, UnsafeEnvironmentError
with LockProvider(sys.argv[1]) as locks:
    try:
        locks.lock("k").acquire()
    except UnsafeEnvironmentError as error:
        print(error)
    print([finding.ok for finding in locks.check() if finding.name in ("place", "lock")])
with LockProvider(sys.argv[1], allow_unsafe=True) as bold:
    print(bold.lock("k").acquire(timeout=0))
"""


def test_a_database_that_is_mounted_as_a_single_file_is_refused(database: Path, tmp_path: Path) -> None:
    """Each container would have a folder of lock files of its own, beside its own mount: two holders."""
    mounted = tmp_path / "a place"
    mounted.touch()
    said = in_own_mounts(f"mount --bind {database} '{mounted}'", CHECKED, f"sqlite:///{mounted}").splitlines()
    assert "mounted as a single file" in said[0]
    assert said[1:] == ["[False, False]", "True"]


def test_a_mounted_folder_is_no_hazard(database: Path, tmp_path: Path) -> None:
    """There the lock files are seen by all."""
    mounted = tmp_path / "a place"
    mounted.mkdir()
    place = f"mount --bind {database.parent} '{mounted}'"
    assert in_own_mounts(place, CHECKED, f"sqlite:///{mounted}/app.db").splitlines() == ["[True, True]", "True"]


def test_a_database_with_a_hard_link_is_refused(database: Path) -> None:
    """By the other name it would have other lock files."""
    os.link(database, database.with_name("other.db"))
    with LockProvider(f"sqlite:///{database}") as locks:
        with pytest.raises(UnsafeEnvironmentError, match=r"'k'.*hard links"):
            locks.lock("k").acquire()
        assert [finding.ok for finding in locks.check() if finding.name == "place"] == [False]
    with LockProvider(f"sqlite:///{database}", allow_unsafe=True) as bold, bold.lock("k", timeout=0):
        pass


def test_a_file_system_without_inodes_is_not_a_matter_of_rights(tmp_path: Path) -> None:
    """The error says what is used up."""
    place = tmp_path / "small"
    place.mkdir()
    mount = f"mount -t tmpfs -o nr_inodes=2 none {place}"
    program = HOLD.replace("sys.stdin.read()", "")
    said = in_own_mounts(mount, program, f"sqlite:///{place}/app.db")
    assert said.startswith("LockConnectionError")
    assert "df -i" in said
    assert "let every user" not in said
