"""`make demo` itself, with real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from example_projects.demo import crew, race
from example_projects.demo.command import demo as demo_command

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

MARK = "DLOCK_TEST_DEMO"
SHORT = ("--seconds", "3", "--workers", "3", "--kills", "1")
LONG = ("--seconds", "60", "--workers", "3", "--kills", "1")


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Mark all processes of this test, and let none of them outlive it."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    yield value
    wait_until_none_is_left(value)


def marked(value: str) -> list[str]:
    """List the processes, other than this one, that inherited the mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={value}".encode() in environ and process.name != str(os.getpid()):
            found.append(process.name)
    return found


def wait_until_none_is_left(value: str) -> None:
    """Wait for the last marked process; fail if one stays."""
    deadline = time.monotonic() + 15
    while left := marked(value):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the demo in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "example_projects.demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_and_wait_for_progress(*arguments: str) -> subprocess.Popen[str]:
    """Start the demo and return when its workers compete."""
    demo = start(*arguments)
    assert demo.stdout is not None
    for line in demo.stdout:
        if " so far, " in line:
            break
    return demo


def demo_with(monkeypatch: pytest.MonkeyPatch, kind: str, *arguments: str) -> Result:
    """Run the demo in this process with workers that are wrong on purpose."""
    script = str(Path(__file__).with_name("workers.py"))
    monkeypatch.setattr(crew, "WORKER_COMMAND", (sys.executable, script, kind))
    return CliRunner().invoke(demo_command, [*arguments])


def test_the_demo_over_sqlite_ends_well_and_shows_its_timeline(mark: str, tmp_path: Path) -> None:
    """Three workers and the replacement of the killed one each have their row."""
    demo = start(*SHORT)
    output, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (0, ""), output
    assert re.findall(r"^  (W\d) .*█.* grants?", output, re.MULTILINE)[:2]
    assert re.search(r"^  W\d .*x.* grants?, killed$", output, re.MULTILINE)
    assert re.search(r"W\d killed while holding; W\d got the lock", output)
    assert "1 kill, never two holders at once" in output.splitlines()[-1]
    assert marked(mark) == []
    assert list(tmp_path.iterdir()) == []


def test_workers_that_do_not_lock_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both witnesses see it: the stamps and the markers."""
    result = demo_with(monkeypatch, "no-lock", *SHORT)
    assert result.exit_code == 1
    assert "both held the lock for" in result.stdout
    assert "found the marker of" in result.stdout
    assert "TWO HOLDERS AT ONCE" in result.stdout.splitlines()[-1]


def test_a_lock_that_outlives_its_killed_holder_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The demo does not wait without limit for the next holder."""
    monkeypatch.setattr(race, "_OVERTIME", 1.0)
    result = demo_with(monkeypatch, "never-freed", *SHORT)
    assert result.exit_code == 1
    assert "was killed" in result.stdout
    assert "no worker got the lock after W" in result.stdout


def test_a_worker_that_crashes_is_shown_with_its_stderr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The demo ends at once instead of going on with fewer."""
    result = demo_with(monkeypatch, "crashing", *LONG)
    assert result.exit_code == 1
    assert re.search(r"FAULT: W\d ended by itself with status 1", result.stdout)
    assert "ConnectionError: the server went away" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_workers_and_still_reports(mark: str, tmp_path: Path, number: signal.Signals) -> None:
    """Status 130, the timeline so far, no process and no file left."""
    demo = start_and_wait_for_progress(*LONG)
    demo.send_signal(number)
    output, errors = demo.communicate(timeout=30)
    assert (demo.returncode, errors) == (130, "")
    assert output.splitlines()[-1].startswith("INTERRUPTED: ")
    assert marked(mark) == []
    assert list(tmp_path.iterdir()) == []


def test_the_workers_end_when_the_demo_itself_is_killed(mark: str) -> None:
    """They end with their stdin, however the demo dies."""
    demo = start_and_wait_for_progress(*LONG)
    assert len(marked(mark)) >= 3
    demo.kill()
    demo.communicate(timeout=30)
    wait_until_none_is_left(mark)


def test_a_terminal_gets_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows the holder in a panel, not lines of a log."""
    monkeypatch.setenv("TERM", "xterm")
    here, there = os.openpty()
    demo = subprocess.Popen(
        [sys.executable, "-m", "example_projects.demo", *SHORT],
        stdout=there,
        stderr=there,
    )
    os.close(there)
    output = read_until_hang_up(here)
    assert demo.wait(timeout=30) == 0
    assert "holds the lock" in output
    assert " so far, " not in output
    assert "never two holders at once" in output


def read_until_hang_up(terminal: int) -> str:
    """Return all that was written to a terminal; Linux ends it with an EIO."""
    chunks = []
    try:
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
    except OSError:
        os.close(terminal)
    return b"".join(chunks).decode()
