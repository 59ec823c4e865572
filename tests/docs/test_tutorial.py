"""The tutorial's lesson, step by step as its reader takes it, on SQLite and on PostgreSQL."""

from __future__ import annotations

import re
import shlex
import socket

import pytest

from .desk import Desk, Program
from .pages import DOCS, blocks, commands, write_files

PAGE = "tutorial.md"
# What differs from machine to machine, or from key to key of a process.
HOST, NUMBER, SPACES = re.compile(r"web-1"), re.compile(r"\d+"), re.compile(r" +")


@pytest.fixture(autouse=True)
def _written(desk: Desk) -> None:
    write_files(PAGE, desk.folder)


def two_reports(desk: Desk) -> tuple[Program, Program]:
    """Start `report.py` twice: one works, the other waits."""
    first = desk.start("python", "report.py")
    first.wait_for("works")
    second = desk.start("python", "report.py")
    second.wait_for("asks")
    return first, second


def shown(text: str) -> list[str]:
    """Return the lines of a block or of a program, without numbers, the host's name, and the width of columns."""
    text = text.replace(socket.gethostname(), "web-1").replace("press Enter to end the work", "")
    return [SPACES.sub(" ", NUMBER.sub("0", line)).strip() for line in text.splitlines() if line.strip()]


def texts() -> list[list[str]]:
    """Return what the page says that programs print."""
    return [shown(block.text) for block in blocks(DOCS / PAGE) if block.language == "text"]


def test_the_second_waits_until_the_first_has_ended(desk: Desk) -> None:
    """Enter in the first, and the second works."""
    first, second = two_reports(desk)
    assert [shown(first.said), shown(second.said)] == texts()[:2]
    first.press_enter()
    second.wait_for("works")
    second.press_enter()
    assert (first.end(), second.end()) == (0, 0)
    assert "is done" in second.said


def test_the_second_has_the_lock_when_the_first_is_killed(desk: Desk) -> None:
    """With SIGKILL, which no program can handle."""
    first, second = two_reports(desk)
    assert "kill -9 4711" in commands(PAGE)
    first.kill()
    second.wait_for("works", 5)


def test_a_try_leaves_it_and_a_waiter_gives_up(desk: Desk) -> None:
    """While the report works; afterwards both work."""
    holder = desk.start("python", "report.py")
    holder.wait_for("works")
    tried = desk.run("python", "try_once.py")[1]
    assert shown(desk.run("python", "three_seconds.py")[1]) == texts()[3]
    holder.press_enter()
    assert holder.end() == 0
    assert shown(tried + desk.run("python", "try_once.py")[1]) == texts()[2]
    assert desk.run("python", "three_seconds.py") == (0, "I work\n")


def test_readers_read_together_and_a_writer_waits_for_them(desk: Desk) -> None:
    """And the next reader waits for the writer."""
    readers = [desk.start("python", "prices.py", "read") for _ in range(2)]
    for reader in readers:
        reader.wait_for("I read")
    writer = desk.start("python", "prices.py", "write")
    for reader in readers:
        assert "I write" not in writer.said
        reader.press_enter()
    writer.wait_for("I write")
    late = desk.start("python", "prices.py", "read")
    with pytest.raises(Exception, match="gave up"):
        late.wait_for("I read", 1)
    writer.press_enter()
    late.wait_for("I read")


def test_the_list_shows_holders_and_waiters(desk: Desk) -> None:
    """As on the page; PostgreSQL names its user, and knows no more than the age of a session."""
    first, second = two_reports(desk)
    found: list[str] = []
    for _ in range(100):
        found = shown(desk.run("dlock", "list")[1])
        if len(found) == 3:
            break
    unlike = {"< ": "", "holds postgres": "holds a process", "waits postgres": "waits a process"}
    for there, here in unlike.items():
        found = [line.replace(there, here) for line in found]
    assert found == texts()[4]
    assert {first.process.poll(), second.process.poll()} == {None}


def test_a_lost_lock_is_noticed_during_the_work_and_after_it(desk: Desk) -> None:
    """`dlock terminate` takes the lock away."""
    careful = desk.start("python", "careful.py")
    careful.wait_for("I work")
    [line] = [line for line in commands(PAGE) if line.startswith("dlock terminate")]
    assert desk.run(*shlex.split(line))[0] == 0
    assert careful.end() == 0
    assert sorted(shown(careful.said)) == sorted(texts()[5])


def test_a_program_that_knows_nothing_of_locks_runs_under_one(desk: Desk) -> None:
    """The second such line ends with 75."""
    [line] = [line for line in commands(PAGE) if line.startswith("dlock run")]
    holder = desk.start(*shlex.split(line))
    for _ in range(100):
        if desk.run("dlock", "show", "nightly-report")[0] == 0:
            break
    status, said = desk.run(*shlex.split(line))
    assert (status, shown(said)) == (75, texts()[6])
    assert holder.process.poll() is None


def test_the_database_is_checked(desk: Desk) -> None:
    """`dlock check` finds nothing wrong here."""
    assert "dlock check" in commands(PAGE)
    status, said = desk.run("dlock", "check")
    assert (status, "BAD" in said) == (0, False)


def test_every_line_for_the_shell_is_known_here() -> None:
    """A new line on the page needs a test above."""
    tested = (r"python \w+\.py( read| write)?", r"dlock (list|check)", r"dlock terminate nightly-report --yes")
    rest = (
        r"python3 -m venv venv",
        r"\. venv/bin/activate",
        r"export DLOCK_URL=\S+",
        r"pip install '\S+'",
        r"kill -9 4711",
    )
    known = re.compile("|".join((*tested, *rest, r"dlock run nightly-report -- sleep 10")))
    assert [line for line in commands(PAGE) if not known.fullmatch(line)] == []
