"""What a test starts ends with it, and with the run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.leftovers import ended

from . import wait_until
from .guard import is_dead

# Two generations, in sessions of their own: neither a process group nor a parent leads from the first to the last.
STARTS = (
    "import subprocess, sys, time\n"
    "print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)\n"
    "time.sleep(float(sys.argv[1]))"
)
RUN = (
    "import subprocess, sys\n"
    "from tests.leftovers import ended, watch_run\n"
    "watch_run()\n"
    "with ended():\n"
    f"    subprocess.run([sys.executable, '-c', {STARTS!r}, '600'])"
)


@pytest.mark.parametrize("lives", ["0", "600"], ids=["orphan", "child"])
def test_what_a_failed_test_started_is_dead_after_it(lives: str) -> None:
    """Its children, and those of its children, also when these are gone."""
    command = [sys.executable, "-c", STARTS, lives]
    with subprocess.Popen(["sleep", "600"]) as other:
        with pytest.raises(ZeroDivisionError), ended():
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            orphan = psutil.Process(int(child.stdout.readline()))
            child.stdout.close()
            if lives == "0":
                assert child.wait(30) == 0
            assert not is_dead(orphan)
            raise ZeroDivisionError
        assert is_dead(orphan)
        assert child.wait(30) == (0 if lives == "0" else -signal.SIGKILL)
        assert other.poll() is None
        other.kill()


def test_what_a_run_started_is_dead_when_the_run_is_killed() -> None:
    """SIGKILL lets no test clean up; the guard does it."""
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        started = psutil.Process(int(run.stdout.readline()))
        assert not is_dead(started)
        run.kill()
    wait_until(lambda: is_dead(started), "what it started to be dead")
