"""`celery -A proj dlock`: the verbs of the command on the locks of an app, found by its entry point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlock_core import LockProvider

from .sites import Site, open_site
from .workers import ROOT, environment


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An app whose locks are on a server."""
    with open_site("filesystem", "postgresql", tmp_path) as opened:
        yield opened


def celery(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `celery` to its end."""
    command = [sys.executable, "-m", "celery", "-A", "tests.celery.project", "dlock", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(site.configuration), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.slow
def test_a_person_on_call_sees_the_holder_and_can_end_it(site: Site) -> None:
    """`list`, `show` and `terminate`; the holder is another program under the same key."""
    with LockProvider(site.lock_url, adapter="shell") as other:
        lock = other.lock("export:7")
        assert lock.acquire(timeout=0)
        assert "shell" in celery(site, "list").stdout
        shown = celery(site, "show", "export:7")
        assert (shown.returncode, "shell" in shown.stdout) == (0, True), shown.stderr
        ended = celery(site, "terminate", "export:7", "--yes")
        assert ended.stdout.startswith("ended shell"), ended.stderr
        assert site.witness.holders() == 0
        assert celery(site, "show", "export:7").returncode == 1


def test_a_program_runs_under_a_lock_of_the_app(site: Site) -> None:
    """A second one names the holder, with 75."""
    program = (sys.executable, "-c", "import os; print(os.environ['DLOCK_KEY']); raise SystemExit(3)")
    ran = celery(site, "run", "nightly", "--", *program)
    assert (ran.returncode, ran.stdout) == (3, "nightly\n"), ran.stderr
    with LockProvider(site.lock_url, adapter="shell") as other, other.lock("nightly"):
        refused = celery(site, "run", "nightly", "--", *program)
    assert (refused.returncode, refused.stdout) == (75, "")
    assert refused.stderr.startswith("nightly is held by shell")
    site.assert_all_free()


def test_the_verbs_work_on_a_bind_and_an_unknown_one_is_named(site: Site, tmp_path: Path) -> None:
    """In one line, without a traceback."""
    there = f"sqlite:///{tmp_path / 'there.db'}"
    site.configuration["dlock_binds"] = {"there": there}
    with LockProvider(there) as other, other.lock("k"):
        assert celery(site, "--bind", "there", "show", "k").returncode == 0
        assert celery(site, "show", "k").returncode == 1
    wrong = celery(site, "--bind", "nix", "list")
    assert wrong.returncode == 1
    assert "bind='nix' is not in dlock_binds" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_command_says_what_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra, whose tables a worker does not need."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    missing = celery(site, "list")
    assert missing.returncode == 1
    assert "rich is missing: pip install 'dlock-suite[cli]'" in missing.stderr
