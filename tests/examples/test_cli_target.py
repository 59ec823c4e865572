"""What `make demo` says when it cannot start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from example_projects.demo.command import demo as demo_command


def demo(url: str) -> Result:
    """Run `dlock demo URL` in this process."""
    return CliRunner().invoke(demo_command, [url])


def refusal(url: str) -> str:
    """Run the demo, check that it refuses in one line, and return the line."""
    result = demo(url)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.output
    return result.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not a database URL"),
        ("s3cret", "not a database URL"),
        ("postgresql://me:s3cret@host:port/db", "not a database URL"),
        ("nosuchdb://me:s3cret@host/db", "no dialect 'nosuchdb'"),
        ("sqlite://", "in-memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in-memory"),
        ("sqlite+aiosqlite:///x.db", "an async driver"),
        ("sqlite:////no/such/folder/x.db", "/no/such/folder/x.db"),
    ],
)
def test_a_url_that_cannot_work_is_refused_in_one_line(url: str, words: str) -> None:
    """Status 2, one line, no traceback, no password."""
    assert words in refusal(url)


def test_a_missing_driver_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hint is a command that helps."""
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    line = refusal("mysql+mysqldb://me:s3cret@host/db")
    assert "pip install 'mysqlclient'" in line, "the extra mysql would install another driver"


def test_an_unreachable_server_is_named_without_the_password() -> None:
    """The driver's many lines become one."""
    pytest.importorskip("psycopg")
    line = refusal("postgresql+psycopg://me:s3cret@127.0.0.1:1/db")
    assert "postgresql+psycopg://me:***@127.0.0.1:1/db" in line


def test_a_password_in_the_query_of_the_url_is_hidden_too() -> None:
    """SQLAlchemy itself hides only the one before the host."""
    pytest.importorskip("psycopg")
    line = refusal("postgresql+psycopg://127.0.0.1:1/db?password=s3cret")
    assert "password=***" in line or "password=%2A%2A%2A" in line


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing: str) -> None:
    """The core installs without click and rich."""
    code = f"""if True:
        import sys
        sys.modules[{missing!r}] = None
        from dlock_core.cli import main
        main()
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"{missing} is missing: pip install 'dlock-suite[cli]'\n"
