"""Children forked inside a held lock, which end in every way after locks of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.contract.house import House, until

KINDS = {"postgresql", "mysql", "mariadb"}


@pytest.mark.rows(lambda row: row.server in KINDS and row.api == "sync" and row.share_sessions)
@pytest.mark.parametrize("fork", ["os", "C"])
def test_children_that_end_in_any_way_leave_the_parents_lock(house: House, fork: str) -> None:
    """The server is asked after each; before its end each child was refused, and had a lock of its own.

    So it is with a fork of which Python knows nothing.
    """
    command = [sys.executable, "-m", "tests.fault.forking", house.url, fork]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as parent:
        try:
            _follow(house, parent)
            complaint = parent.communicate("\n", timeout=20)[1]
            assert parent.returncode == 0, complaint
            assert "Traceback" not in complaint
        finally:
            parent.kill()


def _follow(house: House, parent: subprocess.Popen[str]) -> None:
    assert parent.stdin is not None
    assert parent.stdout is not None
    for end in ("return 0", "sys.exit 3", "exception 1", "os._exit 4", "SIGKILL -9"):
        assert parent.stdout.readline().strip() == end
        assert house.witness.holders() == 1
        stranger = house.stranger()
        assert not stranger.acquire("k", timeout=0)
        assert stranger.acquire("own", timeout=0)
        stranger.release()
        parent.stdin.write("\n")
        parent.stdin.flush()
    assert parent.stdout.readline().strip() == "released"
    until(lambda: house.witness.holders() == 0, "the parent's release")


@pytest.mark.rows(lambda row: row.server in KINDS and row.api == "sync" and row.share_sessions)
def test_a_child_forked_while_a_thread_waits_keeps_nothing_of_its_parents(house: House) -> None:
    """D1: mysqlclient tells nothing of a connection that another thread uses, and the hook was left halfway.

    The child hung or showed the parent's locks, and its copy of the socket kept them when the parent was killed.
    """
    stranger = house.stranger()
    assert stranger.acquire("busy")
    command = [sys.executable, "-m", "tests.fault.busy_fork", house.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as parent:
        child = None
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "waits\n"
            until(lambda: house.witness.waiters() == 1, "the wait at the server")
            assert parent.stdin is not None
            parent.stdin.write("\n")
            parent.stdin.flush()
            child, *found = parent.stdout.readline().split()
            assert found == ["0", "True", "False"]
            parent.kill()
            heir = house.stranger()
            assert heir.acquire("held", timeout=5)
            assert not heir.acquire("own", timeout=0)  # the child lives, and holds it
            heir.release()
        finally:
            parent.kill()
            if child is not None:
                os.kill(int(child), signal.SIGKILL)
            complaint = parent.communicate()[1]
    assert complaint == ""
    stranger.release()
