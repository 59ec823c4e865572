"""`dlock run`: real programs under real locks, with a terminal and without."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from dlock_core import LockProvider, run_locked
from tests.conftest import server
from tests.servers import wait_until
from tests.servers.guard import is_dead
from tests.statements.scenes import OracleScene

DLOCK = [sys.executable, "-m", "dlock_core.cli"]
KEY = "nightly-report"
# A program that tells that it runs, and then waits for the end of its input or for a signal.
STAY = ["sh", "-c", "echo started $$; cat > /dev/null"]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database for each kind."""
    match request.param:
        case "sqlite":
            return f"sqlite:///{tmp_path / 'app.db'}"
        case "postgresql":
            return server("postgresql").url("postgresql+psycopg")
        case kind:
            return server(kind).url("mysql+pymysql")


@pytest.fixture
def locks(url: str) -> Iterator[LockProvider]:
    """What looks from outside."""
    with LockProvider(url) as provider:
        yield provider
        assert provider.inspect(KEY) == [], "a lock was left behind"


class Run:
    """One `dlock run`."""

    def __init__(self, url: str, *words: str, program: list[str] = STAY) -> None:
        self.process = subprocess.Popen(
            [*DLOCK, "run", KEY, *words, "--", *program],
            env={**os.environ, "DLOCK_URL": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def started(self) -> psutil.Process:
        """Wait until the program runs, and return it."""
        assert self.process.stdout is not None
        word, pid = self.process.stdout.readline().split()
        assert word == "started"
        return psutil.Process(int(pid))

    def end(self) -> tuple[int, str]:
        """Let the program read its end; return status and what was said."""
        _, said = self.process.communicate("", timeout=30)
        return self.process.returncode, said


def run(url: str, *words: str, program: list[str]) -> tuple[int, str, str]:
    """Run to the end; return status, output and complaints."""
    running = Run(url, *words, program=program)
    out, said = running.process.communicate("", timeout=30)
    return running.process.returncode, out, said


def test_the_program_s_own_status_is_handed_on(url: str, locks: LockProvider) -> None:
    """And the lock is free afterwards."""
    assert run(url, program=["sh", "-c", "exit 3"])[0] == 3
    assert run(url, program=["sh", "-c", "kill -TERM $$"])[0] == 128 + signal.SIGTERM


def test_the_program_knows_key_and_fencing_token(url: str, locks: LockProvider) -> None:
    """A later grant has a greater token."""
    tell = ["sh", "-c", 'echo "$DLOCK_KEY $DLOCK_FENCING_TOKEN"']
    first, second = (run(url, program=tell)[1].split() for _ in range(2))
    assert first[0] == second[0] == KEY
    assert int(first[1]) < int(second[1])


def test_of_two_one_runs_and_the_other_names_the_holder(url: str, locks: LockProvider) -> None:
    """75, as sysexits.h calls a temporary failure; another status, or success, on demand."""
    first = Run(url)
    first.started()
    status, out, said = run(url, program=["echo", "never"])
    assert (status, out) == (75, "")
    assert f"{KEY} is held by " in said
    assert run(url, "--skip", program=["echo", "never"])[:2] == (0, "")
    assert run(url, "--exit-code", "9", program=["echo", "never"])[:2] == (9, "")
    assert first.end()[0] == 0


def test_with_a_timeout_the_second_waits_for_the_first(url: str, locks: LockProvider) -> None:
    """It runs as soon as the lock is free."""
    first = Run(url)
    first.started()
    second = Run(url, "--timeout", "30")
    if not url.startswith("sqlite"):
        wait_until(lambda: len(locks.inspect(KEY)[0].waiters) == 1, "the second to wait", 10)
    first.end()
    second.started()
    assert second.end()[0] == 0


def test_to_wait_for_a_time_and_for_ever_is_refused(tmp_path: Path) -> None:
    """Neither of the two is dropped in silence."""
    status, _, said = run(f"sqlite:///{tmp_path / 'app.db'}", "--timeout", "5", "--wait", program=["true"])
    assert status == 2
    assert "--wait waits without limit, and --timeout 5 does not: give one of them" in said


def test_a_command_is_needed(tmp_path: Path) -> None:
    """Also where the key is in JSON."""
    assert run(f"sqlite:///{tmp_path / 'app.db'}", program=[])[0] == 2
    environment = {**os.environ, "DLOCK_URL": f"sqlite:///{tmp_path / 'app.db'}"}
    words = [*DLOCK, "run", "--json-key", "7", "--"]
    assert subprocess.run([*words, "true"], env=environment, check=False).returncode == 0
    assert subprocess.run(words, env=environment, check=False, capture_output=True).returncode == 2


def test_readers_run_side_by_side(tmp_path: Path) -> None:
    """Where the database has shared locks."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    readers = [Run(url, "--shared"), Run(url, "--shared")]
    for reader in readers:
        reader.started()
    assert run(url, program=["true"])[0] == 75
    assert [reader.end()[0] for reader in readers] == [0, 0]


def test_a_killed_wrapper_leaves_no_lock_and_no_orphan(url: str, locks: LockProvider) -> None:
    """The server frees the lock, and the kernel ends the program."""
    running = Run(url)
    program = running.started()
    running.process.kill()
    wait_until(lambda: is_dead(program), "the program to end", 10)
    wait_until(lambda: locks.inspect(KEY) == [], "the lock to be free", 10)
    running.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_program(url: str, locks: LockProvider, number: signal.Signals) -> None:
    """The wrapper lives until the program has ended, so that the lock does too."""
    name = number.name.removeprefix("SIG")
    running = Run(
        url, program=["sh", "-c", f"trap 'echo got; exit 7' {name}; echo started $$; while :; do sleep 0.05; done"]
    )
    running.started()
    running.process.send_signal(number)
    out, _ = running.process.communicate(timeout=30)
    assert (running.process.returncode, out) == (7, "got\n")


def test_the_loss_of_the_lock_stops_the_program_and_what_it_started(url: str, locks: LockProvider) -> None:
    """First politely, then not: this one does not listen."""
    deaf = "trap '' TERM; sleep 600 & echo started $!; wait; sleep 600"
    running = Run(url, "--grace", "0.2", program=["sh", "-c", deaf])
    grandchild = running.started()
    (info,) = locks.inspect(KEY)
    assert locks.terminate(info)
    assert running.process.wait(30) == 74
    assert running.process.stderr is not None
    assert "was lost" in running.process.stderr.read()
    wait_until(lambda: is_dead(grandchild), "it to end", 10)
    running.process.communicate()


def test_what_cannot_be_started_is_said(url: str, locks: LockProvider) -> None:
    """With the statuses of shells."""
    status, _, said = run(url, program=["/no/such/program"])
    assert (status, said) == (127, "/no/such/program: No such file or directory\n")
    assert run(url, program=["/etc/passwd"])[0] == 126


def test_a_database_without_fencing_tokens_runs_programs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL Server: the program learns the key, and no token, not even one of another lock from our own environment."""
    monkeypatch.setenv("DLOCK_FENCING_TOKEN", "7")
    url = server("mssql").url("mssql+pymssql")
    tell = ["sh", "-c", 'echo "$DLOCK_KEY ${DLOCK_FENCING_TOKEN-none}"; exit 3']
    assert run(url, program=tell)[:2] == (3, f"{KEY} none\n")
    first = Run(url)
    first.started()
    assert run(url, program=["echo", "never"])[:2] == (75, "")
    assert first.end()[0] == 0
    assert run(url, program=tell)[0] == 3


def test_run_locked_needs_no_fencing_tokens(tmp_path: Path) -> None:
    """Oracle: the lock is held while the program runs, and free afterwards."""
    scene = OracleScene()
    go, seen = tmp_path / "go", tmp_path / "seen"
    program = ["sh", "-c", f'echo "${{DLOCK_FENCING_TOKEN-none}}" > {seen}; while [ ! -e {go} ]; do sleep 0.02; done']
    with LockProvider(scene.engine()) as locks, ThreadPoolExecutor() as pool:
        status = pool.submit(run_locked, locks, KEY, program)
        wait_until(lambda: seen.exists() and seen.read_text() == "none\n", "the program to run", 10)
        assert scene.held == 1
        go.touch()
        assert status.result(10) == 0
        assert scene.held == 0


def _ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def test_a_process_that_ignores_its_children_learns_the_status_all_the_same(tmp_path: Path) -> None:
    """Some supervisors start programs so; the kernel would throw the status away, and we would wait without limit."""
    process = subprocess.run(
        [*DLOCK, "run", KEY, "--", "sh", "-c", "exit 3"],
        env={**os.environ, "DLOCK_URL": f"sqlite:///{tmp_path / 'app.db'}"},
        preexec_fn=_ignore_children,
        timeout=30,
        check=False,
    )
    assert process.returncode == 3


IN_A_THREAD = """
import signal, sys, threading
from dlock_core import LockProvider, run_locked
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
locks = LockProvider(sys.argv[1])
def run():
    try:
        print(run_locked(locks, "k", ["sh", "-c", "exit 3"]))
    except ChildProcessError as error:
        print(error, len(locks.held_locks()), locks.lock("k").acquire(timeout=0))
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_a_status_that_the_kernel_threw_away_is_an_error_and_frees_the_lock(tmp_path: Path) -> None:
    """In a thread SIGCHLD cannot be changed; a success that was not seen is not claimed."""
    command = [sys.executable, "-c", IN_A_THREAD, f"sqlite:///{tmp_path / 'app.db'}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "exit status is lost" in said
    assert said.endswith("0 True\n")


class Terminal:
    """A program as a shell would start it, in the foreground of a terminal of its own; by default `dlock run`."""

    def __init__(self, url: str, *program: str, command: Sequence[str] = (*DLOCK, "run", KEY, "--")) -> None:
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.environ["DLOCK_URL"] = url
            os.execvp(command[0], [*command, *program])
        self.text = ""
        self._status: int | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._screen, 1024)
            except OSError:  # the other end is closed
                return
            self.text += chunk.decode()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._screen, text.encode())

    def sees(self, text: str) -> None:
        """Wait for words on the screen, after those that were seen before."""
        wait_until(lambda: text in self.text, f"{text!r} on the screen", 30)
        self.text = self.text.partition(text)[2]

    def end(self) -> int:
        """Wait for the end and return the status."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._screen)
        return os.waitstatus_to_exitcode(status)


def test_the_program_has_the_terminal(url: str, locks: LockProvider) -> None:
    """It reads what is typed, as it would without us."""
    terminal = Terminal(url, "sh", "-c", "echo ready; read word; echo got $word")
    terminal.sees("ready")
    terminal.type("hello\n")
    terminal.sees("got hello")
    assert terminal.end() == 0


def test_two_terminals_exclude_each_other(url: str, locks: LockProvider) -> None:
    """One runs, the other answers 75."""
    first = Terminal(url, "sh", "-c", "echo ready; read word")
    first.sees("ready")
    second = Terminal(url, "echo", "never")
    assert second.end() == 75
    first.type("\n")
    assert first.end() == 0


def test_ctrl_c_reaches_the_program_once(url: str, locks: LockProvider) -> None:
    """By the terminal itself; the wrapper waits for it, and hands its status on."""
    program = "trap 'echo caught; n=$((n+1))' INT; echo ready; while [ -z $n ]; do sleep 0.05; done; sleep 0.3; exit $n"
    terminal = Terminal(url, "sh", "-c", program)
    terminal.sees("ready")
    terminal.type("\x03")
    terminal.sees("caught")
    assert terminal.end() == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_gives_the_shell_back_and_fg_goes_on(tmp_path: Path) -> None:
    """The lock is held meanwhile, and the program reads from the terminal again afterwards."""
    run_it = f"{sys.executable} -m dlock_core.cli run {KEY} --"
    shell = Terminal(f"sqlite:///{tmp_path / 'app.db'}", command=["bash", "--norc", "-i"])
    shell.type(f'{run_it} sh -c \'echo rea""dy; read word; echo go""t $word; exit 5\'\n')
    shell.sees("ready")
    shell.type("\x1a")
    shell.sees("Stopped")
    shell.type(f"{run_it} true; echo status=$?\n")
    shell.sees("status=75")
    shell.type("fg\n")
    shell.sees("read word")  # bash names the job that goes on
    shell.type("word\n")
    shell.sees("got word")
    shell.type("echo status=$?\n")
    shell.sees("status=5")
    shell.type("exit\n")
    assert shell.end() == 0
