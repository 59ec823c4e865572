"""`dlock list`, `show`, `terminate` and `check`, by people and by programs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from dlock_core import LockLostError, LockProvider
from dlock_core.adapters import PROVIDER_OPTIONS
from dlock_core.cli import dlock_commands
from dlock_core.cli.group import dlock
from tests.conftest import server
from tests.servers import MariaDB, wait_until

DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mysql+pymysql"}


@pytest.fixture(params=["sqlite", *DRIVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'app.db'}"
    return server(request.param).url(DRIVERS[request.param])


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database for what is the same everywhere."""
    return f"sqlite:///{tmp_path / 'app.db'}"


def invoke(url: str, *words: str, typed: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(dlock, words, env={"DLOCK_URL": url}, input=typed, catch_exceptions=False)


def as_json(url: str, *words: str) -> Any:
    """Run a command for programs."""
    return json.loads(invoke(url, *words, "--json").stdout)


HOLD = """
import sys, threading
from dlock_core import LockProvider, LockLostError
url, adapter, key, *more = sys.argv[1:]
locks = LockProvider(url, adapter=adapter, share_sessions=False)
lost = threading.Event()
lock = locks.lock(key, timeout=60, on_lost=lambda lock: lost.set())
print("asks", flush=True)
lock.acquire()
print("holds", flush=True)
if "lose" in more:
    print("lost" if lost.wait(30) else "kept", flush=True)
    sys.exit()
sys.stdin.readline()
lock.release()
"""


class Process:
    """Another process that takes a key, as an adapter would."""

    def __init__(self, url: str, adapter: str, key: str, *more: str) -> None:
        self.adapter, self.key = adapter, key
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, url, adapter, key, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.says("asks")

    def says(self, word: str) -> None:
        """Wait for its next word."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"

    def may_leave(self) -> None:
        """Let it release as soon as it holds, and end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def leave(*processes: Process) -> None:
    """Let them all go, in whatever order they get their locks."""
    for process in processes:
        process.may_leave()
    for process in processes:
        process.process.communicate(timeout=30)


@pytest.fixture
def crowd(url: str) -> Iterator[tuple[list[Process], list[Process]]]:
    """Three holders of different adapters, and five that wait for them."""
    holders = [Process(url, *who) for who in (("celery", "invoice:7"), ("django", "import"), ("flask", "doc:1"))]
    for holder in holders:
        holder.says("holds")
    waits = [
        ("celery", "invoice:7"),
        ("shell", "invoice:7"),
        ("flask", "import"),
        ("django", "doc:1"),
        ("shell", "doc:1"),
    ]
    waiters = [Process(url, *who) for who in waits]
    yield holders, waiters
    leave(*holders, *waiters)


def seen(url: str) -> dict[str, tuple[str, int, set[tuple[str, int]]]]:
    """Return what the list shows: by key the holder's adapter and process, and those that wait for it."""
    return {
        info["key"]: (info["adapter"], info["pid"], {(one["adapter"], one["pid"]) for one in info["waiters"]})
        for info in as_json(url, "list")
    }


def test_the_list_shows_holders_and_waiters(url: str, crowd: tuple[list[Process], list[Process]]) -> None:
    """Of three adapters and the shell, each in a process of its own."""
    holders, waiters = crowd
    expected = {
        holder.key: (
            holder.adapter,
            holder.process.pid,
            {(one.adapter, one.process.pid) for one in waiters if one.key == holder.key},
        )
        for holder in holders
    }
    wait_until(lambda: seen(url) == expected, f"{expected} to be listed", 20)
    table = invoke(url, "list").output
    for process in (*holders, *waiters):
        assert [line for line in table.splitlines() if process.adapter in line and f" {process.process.pid} " in line]
    ages = [line.split()[-1] for line in table.splitlines()[1:]]
    assert set(ages) <= {"s", "min"}, "every line ends in an age"


def test_terminate_hands_the_lock_on_and_its_holder_says_lost(url: str) -> None:
    """Within moments, and no other is touched."""
    holder, bystander = Process(url, "celery", "invoice:7", "lose"), Process(url, "django", "import")
    holder.says("holds")
    bystander.says("holds")
    waiter = Process(url, "shell", "invoice:7")
    result = invoke(url, "terminate", "invoice:7", "--yes")
    assert (result.exit_code, result.output.startswith("ended celery on ")) == (0, True)
    holder.says("lost")
    waiter.says("holds")
    assert as_json(url, "show", "import")[0]["pid"] == bystander.process.pid
    leave(waiter, bystander)
    holder.process.communicate(timeout=30)


def test_terminate_asks_first(sqlite_url: str) -> None:
    """A no ends nothing."""
    with LockProvider(sqlite_url) as locks, locks.lock("k"):
        assert invoke(sqlite_url, "terminate", "k", typed="n\n").exit_code == 1
        assert invoke(sqlite_url, "terminate", "k", typed="").exit_code == 1
        assert invoke(sqlite_url, "show", "k").exit_code == 0
    with LockProvider(sqlite_url) as locks, pytest.raises(LockLostError), locks.lock("k"):
        assert invoke(sqlite_url, "terminate", "k", typed="y\n").exit_code == 0


def test_terminate_names_the_other_locks_of_the_session(url: str) -> None:
    """And ends them only when asked to."""
    with LockProvider(url) as locks:
        held = [locks.lock(key) for key in ("a", "b")]
        if url.startswith("sqlite"):
            pytest.skip("there each lock is on its own")
        for lock in held:
            lock.acquire()
        refused = invoke(url, "terminate", "a", "--yes")
        assert refused.exit_code == 2
        assert "1 more" in refused.output
        assert "Say --whole-session to end them all" in refused.output
        assert invoke(url, "terminate", "a", "--yes", "--whole-session").exit_code == 0
        for lock in held:
            with pytest.raises(LockLostError):
                lock.release()


def test_show_says_whether_a_key_is_free(url: str) -> None:
    """By its status too, for scripts; the key may be as the list shows it."""
    assert (invoke(url, "show", "k").exit_code, invoke(url, "show", "k").output) == (1, "k is free\n")
    assert as_json(url, "show", "k") == []
    with LockProvider(url, share_sessions=False) as locks, locks.lock(("orders", 42)) as lock:
        assert invoke(url, "show", "--json-key", '["orders", 42]').exit_code == 0
        assert as_json(url, "show", str(lock.actual_key))[0]["key"].startswith("orders:42")
    assert invoke(url, "terminate", "k", "--yes").exit_code == 1


@pytest.mark.parametrize("key", ["it's", ("orders", 42), ("orders", "42"), 42, ("a:b",), "orders:42", "42"], ids=str)
def test_a_key_can_be_typed_as_the_list_shows_it(url: str, key: Any) -> None:
    """Whatever its type; in JSON where it is no text."""
    with LockProvider(url, share_sessions=False) as locks, locks.lock(key):
        line = invoke(url, "list").output.splitlines()[1]
        words = shlex.split(line.partition(" exclusive ")[0])
        assert invoke(url, "show", *words).exit_code == 0
        taken = invoke(url, "run", *words, "--", "true")
        assert (taken.exit_code, f"{line.partition(' exclusive ')[0].strip()} is held by" in taken.output) == (75, True)


@pytest.mark.parametrize(
    ("held", "words", "means"),
    [
        (("orders", 42), ["orders:42"], "--json-key '[\"orders\", 42]'"),
        (("orders", "42"), ["--json-key", '["orders", 42]'], '--json-key \'["orders", "42"]\''),
        ("orders:42", ["--json-key", '["orders", 42]'], "orders:42"),
        (("a",), ["a"], "--json-key '[\"a\"]'"),
    ],
    ids=str,
)
def test_a_key_that_looks_like_a_held_one_of_another_type_is_refused(
    url: str, held: Any, words: list[str], means: str
) -> None:
    """Or a user would end, or believe free, another lock than the one meant."""
    with LockProvider(url, share_sessions=False) as locks, locks.lock(held):
        for verb in (["show"], ["terminate", "--yes"]):
            refused = invoke(url, *verb, *words)
            assert (refused.exit_code, f"a lock that looks like it is held: {means}, " in refused.output) == (2, True)
        assert len(locks.held_locks()) == 1


@pytest.mark.parametrize(
    "words", [[], ["k", "--json-key", "7"], ["--json-key", "k"], ["--json-key", "[null]"]], ids=str
)
def test_a_key_is_given_once_and_is_one(sqlite_url: str, words: list[str]) -> None:
    """As text, or in JSON."""
    for verb in ("show", "terminate"):
        assert invoke(sqlite_url, verb, *words).exit_code == 2


def test_every_option_of_a_provider_is_an_option_of_every_command(sqlite_url: str) -> None:
    """By one mechanism: a new one is there by itself, with what its docstring says, and as a variable."""
    for verb in ("run", "list", "show", "terminate", "check"):
        said = " ".join(invoke(sqlite_url, verb, "--help").output.split())
        for name in PROVIDER_OPTIONS:
            assert f"--{name.replace('_', '-')}" in said
            assert f"Or set DLOCK_{name.upper()}." in said
    assert invoke(sqlite_url, "check", "--heartbeat", "none", "--no-show-keys", "--share-sessions").exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lease", "soon"], "give seconds, or none"),
        (["--max-sessions", "1"], "max_sessions=1: give a number from 2"),
        (["--lease", "5", "--no-share-sessions"], "choose one"),
        (["--heartbeat", "0.1"], "heartbeat=0.1: give seconds, 1 or more"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_words(sqlite_url: str, words: list[str], says: str) -> None:
    """Those of the provider itself."""
    refused = invoke(sqlite_url, "list", *words)
    assert (refused.exit_code, says in refused.output) == (2, True)


@pytest.mark.parametrize("prefix", ["shop", "none"])
def test_a_provider_option_may_be_a_variable(sqlite_url: str, prefix: str) -> None:
    """As the URL may; "none" is a word for seconds only."""
    environment = {"DLOCK_URL": sqlite_url, "DLOCK_PREFIX": prefix, "DLOCK_MAX_SESSIONS": "2"}
    with LockProvider(sqlite_url, prefix=prefix) as locks, locks.lock("k"):
        assert CliRunner().invoke(dlock, ["show", "k"], env=environment).exit_code == 0
        wrong = CliRunner().invoke(dlock, ["show", "k"], env={**environment, "DLOCK_MAX_SESSIONS": "1"})
        assert wrong.exit_code == 2


def test_a_negative_number_of_the_list_is_a_key() -> None:
    """Not an option."""
    url = server("postgresql").url(DRIVERS["postgresql"])
    with LockProvider(url) as locks, pytest.raises(LockLostError), locks.lock(-42):
        assert invoke(url, "show", "-42").exit_code == 0
        assert invoke(url, "terminate", "-42", "--yes").exit_code == 0
    assert invoke(url, "terminate", "-42", "--yess").exit_code == 2


def test_the_prefix_is_that_of_the_application(sqlite_url: str) -> None:
    """The same key under another prefix is another lock."""
    with LockProvider(sqlite_url, prefix="shop") as locks, locks.lock("k"):
        assert invoke(sqlite_url, "show", "k", "--prefix", "shop").exit_code == 0
        assert invoke(sqlite_url, "show", "k", "--prefix", "bank").exit_code == 1


def test_an_empty_list_is_said(sqlite_url: str) -> None:
    """And is empty for programs."""
    assert invoke(sqlite_url, "list").output == "no locks are held\n"
    assert as_json(sqlite_url, "list") == []


def test_check_says_what_it_found(url: str) -> None:
    """Nothing is wrong here."""
    result = invoke(url, "check")
    assert result.exit_code == 0, result.output
    assert "ok    lock: taken and released" in result.output
    found = {finding["name"]: finding["ok"] for finding in as_json(url, "check")}
    assert (found["lock"], found["latency"], found["server"]) == (True, True, None)


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    """A folder that is no folder of ours."""
    (tmp_path / "app.db.dlock").symlink_to(tmp_path)
    result = invoke(f"sqlite:///{tmp_path / 'app.db'}", "check")
    assert result.exit_code == 1
    assert "BAD   lock: " in result.output


@pytest.mark.parametrize(
    ("words", "url", "says"),
    [
        (["list"], "", "Give --url, or set DLOCK_URL"),
        (["list"], "postgresql+psycopg://user:secret@127.0.0.1:1/db", "127.0.0.1:1"),
        (["show", "k"], "postgresql+asyncpg://user:secret@host/db", "async driver"),
        (["check", "--url", "no url"], "", "not a database URL"),
    ],
)
def test_a_database_that_cannot_be_asked_is_one_line_and_status_2(words: list[str], url: str, says: str) -> None:
    """No traceback, and no password."""
    result = invoke(url, *words)
    assert result.exit_code == 2
    assert says in result.output
    assert "secret" not in result.output
    assert len(result.output.splitlines()) <= 2


def test_an_unprivileged_user_learns_what_is_hidden() -> None:
    """Status 77, and what can be shown is."""
    if isinstance(found := MariaDB.find(), str):
        pytest.skip(found)
    with MariaDB(settings={"performance_schema": "OFF"}) as running:
        url = running.url("mysql+pymysql")
        hidden = invoke(url, "list")
        assert (hidden.exit_code, "INSTALL SONAME" in hidden.output) == (77, True)
        with LockProvider(url) as locks, locks.lock("k"):
            assert invoke(url, "show", "k").exit_code == 0
            admin = sa.create_engine(url)
            with admin.connect() as connection:
                connection.exec_driver_sql("CREATE USER plain@'127.0.0.1'")
            admin.dispose()
            plain = running.url("mysql+pymysql", user="plain", database="information_schema")
            refused = invoke(plain, "terminate", "k", "--yes", "--whole-session")
            assert (refused.exit_code, "CONNECTION_ADMIN" in refused.output) == (77, True)
            assert invoke(plain, "show", "k").exit_code == 0


@pytest.fixture
def mounted(sqlite_url: str) -> Iterator[Callable[..., Result]]:
    """The verbs in another's own command line, with an option of its own."""
    with LockProvider(sqlite_url, prefix="shop", adapter="flask") as locks:

        def factory(database: str) -> LockProvider:
            assert database == "default"
            return locks

        group = dlock_commands(factory, params=[click.Option(["--database"], default="default")])

        def run(*words: str) -> Result:
            return CliRunner().invoke(group, words, env={"DLOCK_URL": "nosuch://"}, catch_exceptions=False)

        with locks.lock("k"):
            yield run


def test_an_application_mounts_the_same_verbs_over_its_own_locks(mounted: Callable[..., Result]) -> None:
    """No URL is asked for, nor taken from the environment."""
    assert "flask" in mounted("--database", "default", "list").output
    assert mounted("show", "k").exit_code == 0
    assert mounted("run", "k", "--", "true").exit_code == 75
    assert mounted("run", "other", "--", "sh", "-c", "exit 4").exit_code == 4
    assert mounted("check").exit_code == 0
    assert mounted("run", "other", "--lease", "5", "--", "true").exit_code == 2
    assert "--url" not in mounted("list", "-h").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_commands(shell: str) -> None:
    """By click's own completion."""
    environment = {**os.environ, "_DLOCK_COMPLETE": f"{shell}_source"}
    program = [sys.executable, "-c", "from dlock_core.cli import main; main()"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert "_DLOCK_COMPLETE" in done.stdout


def test_the_module_is_the_command() -> None:
    """`python -m dlock_core.cli`, where scripts are not on the path."""
    done = subprocess.run(
        [sys.executable, "-m", "dlock_core.cli", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("run", "list", "show", "terminate", "check", "init"):
        assert f"\n  {verb} " in done.stdout
