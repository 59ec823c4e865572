"""What a side file alone can suffer."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from dlock_core import Lock, LockConnectionError, LockProvider, UnsafeEnvironmentError
from dlock_core.dialects.sqlite_files import SideFiles

NOBODY = 65534


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database file in a folder where everybody may write."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
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


def side_files(database: Path) -> list[Path]:
    """Return the side files that exist."""
    return sorted(database.with_name("app.db.dlock").iterdir())


HOLD = """
import sys
from dlock_core import LockError, LockProvider
try:
    lock = LockProvider(sys.argv[1]).lock("k")
    print(lock.acquire(timeout=0), flush=True)
except LockError as error:
    print(type(error).__name__, error, flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that tries once and stays."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, f"sqlite:///{database}"],
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
    """Return what another process is told that tries once."""
    holder = Holder(database)
    holder.leave()
    return holder.answer


class User:
    """Another user's process, forked: he may not even read this Python."""

    def __init__(self, database: Path, uid: int) -> None:
        answers, tell = os.pipe()
        stay, self._let_go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._let_go)
            os.write(tell, self._answer(database, uid).encode())
            os.close(tell)
            os.read(stay, 1)
            os._exit(0)
        os.close(tell)
        os.close(stay)
        with os.fdopen(answers) as file:
            self.answer = file.read()

    @staticmethod
    def _answer(database: Path, uid: int) -> str:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
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
    assert {stat.S_IMODE(path.stat().st_mode) for path in side_files(database)} == {0o666}
    assert stat.S_IMODE(database.with_name("app.db.dlock").stat().st_mode) == 0o777


@pytest.mark.usefixtures("needs_root")
def test_a_side_file_that_may_only_be_read_is_refused(database: Path) -> None:
    """SQLite would hand out a mere read lock there, and two would hold."""
    holder = Holder(database)
    assert holder.answer == "True"
    for path in side_files(database):
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


@pytest.mark.parametrize("planted", ["symlink to a file", "dangling symlink", "folder", "data"])
def test_something_planted_is_refused(locks: LockProvider, database: Path, tmp_path: Path, planted: str) -> None:
    """We neither lock nor touch what is not an empty file of ours."""
    with locks.lock("k"):
        [path] = side_files(database)
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
        pytest.raises(UnsafeEnvironmentError, match=r"'k'.*find out who made it"),
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


def test_a_side_file_that_was_deleted_while_idle_is_made_again(locks: LockProvider, database: Path) -> None:
    """A tmp cleaner costs nothing between two uses."""
    with locks.lock("k"):
        pass
    for path in side_files(database):
        path.unlink()
    with locks.lock("k"):
        assert answer_of(database) == "False"


def open_side_files(database: Path) -> list[str]:
    """Return what this process has open of the side files."""
    folder = f"{database}.dlock{os.sep}"
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(folder)]


@pytest.mark.parametrize("held", [False, True], ids=["idle", "held"])
def test_a_closed_provider_has_no_side_file_open(database: Path, held: bool) -> None:
    """Not even those that it kept for the next use of their keys."""
    with LockProvider(f"sqlite:///{database}") as locks:
        lock = locks.lock("k")
        lock.acquire()
        with locks.lock("readers", shared=True):
            pass
        if not held:
            lock.release()
        assert open_side_files(database)
    assert open_side_files(database) == []


def test_a_forgotten_provider_has_no_side_file_open(database: Path) -> None:
    """It closes them itself: Python 3.13 warns of a database that the collector of garbage has to close."""
    locks = LockProvider(f"sqlite:///{database}")
    with locks.lock("k"):
        pass
    assert open_side_files(database)
    del locks
    gc.collect()
    assert open_side_files(database) == []


def test_a_lock_given_back_while_its_provider_closes_leaves_no_file_open(database: Path) -> None:
    """Whoever is under way then must not bring his file back for the next one."""
    files = SideFiles(database)
    session = files.session("dlock", lambda _: None)
    assert session.acquire("k", shared=False, timeout=0, label=None)
    files.close()
    assert session.release("k", shared=False)
    assert open_side_files(database) == []


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
        assert {path.stat().st_size for path in side_files(database)} == {0}
        assert len(side_files(database)) == 3  # one, and for the shared key its readers' file too
        assert not any("secret" in path.name or "journal" in path.name for path in side_files(database))


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


def test_the_documented_hazard_is_real(locks: LockProvider, database: Path) -> None:
    """Opening and closing a side file in the holder's process drops its lock, as POSIX has it.

    The day this fails, the warning in the docs can go.
    """
    with locks.lock("k"):
        [path] = side_files(database)
        path.open("rb").close()
        assert answer_of(database) == "True"


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
