"""The env.py of the page, in projects as `alembic init` makes them, with several upgrades at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import sqlalchemy as sa

from .desk import Desk
from .pages import files

PAGE = "how-to/alembic.md"
MIGRATION = """
import time
import sqlalchemy as sa
from alembic import op

revision, down_revision = {revision!r}, {before!r}


def upgrade() -> None:
    print("upgrading to", {revision!r})
    op.create_table({revision!r}, sa.Column("id", sa.Integer))
    time.sleep(0.5)
    {more}
"""
CONCURRENTLY = """with op.get_context().autocommit_block():
        op.create_index("quick", "one", ["id"], postgresql_concurrently=True)"""
ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+asyncpg"}


def make_project(desk: Desk, url: str, shown: str, template: str = "generic", more: str = "pass") -> None:
    """Make a project with two migrations, and put a file of the page into its env.py."""
    assert desk.run("python", "-m", "alembic", "init", "-t", template, "migrations")[0] == 0
    ini = desk.folder / "alembic.ini"
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", url))
    env = desk.folder / "migrations" / "env.py"
    env.write_text(merged(env.read_text(), files(PAGE)[shown]))
    for revision, before, body in (("one", None, "pass"), ("two", "one", more)):
        path = desk.folder / "migrations" / "versions" / f"{revision}.py"
        path.write_text(MIGRATION.format(revision=revision, before=before, more=body))


def merged(env: str, shown: str) -> str:
    """Replace the function that the page shows, and put its imports at the top, as a reader would."""
    wanted, lines = ast.parse(shown), env.splitlines()
    [new] = [node for node in wanted.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    [old] = [node for node in ast.parse(env).body if getattr(node, "name", None) == new.name]
    imports = [ast.unparse(node) for node in wanted.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines[old.lineno - 1 : old.end_lineno] = shown.splitlines()[new.lineno - 1 :]
    return "\n".join([*imports, *lines])


def upgrade_together(desk: Desk) -> list[str]:
    """Run three upgrades at once, and return what each said."""
    programs = [desk.start("python", "-m", "alembic", "upgrade", "head") for _ in range(3)]
    assert [program.end() for program in programs] == [0, 0, 0], [program.said for program in programs]
    return [program.said for program in programs]


def assert_once(said: list[str]) -> None:
    """One of them did everything, the others found nothing to do."""
    assert sorted(text.count("upgrading to") for text in said) == [0, 0, 2]


def test_one_of_several_upgrades_does_the_work(desk: Desk, url: str) -> None:
    """With the engine of the generic template."""
    make_project(desk, url, "env.py")
    assert_once(upgrade_together(desk))
    assert desk.run("python", "-m", "alembic", "current")[1].rstrip().endswith("two (head)")


def test_without_the_guard_they_meet(desk: Desk, url: str) -> None:
    """What the page says of Alembic itself; otherwise the tests above would prove nothing."""
    make_project(desk, url, "env.py")
    env = desk.folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace('locks.lock("alembic", timeout=600),', ""))
    programs = [desk.start("python", "-m", "alembic", "upgrade", "head") for _ in range(3)]
    assert sum(program.end() != 0 for program in programs) >= 1


def test_one_of_several_async_upgrades_does_the_work(desk: Desk, url: str) -> None:
    """With the engine of the async template."""
    drivername = url.partition(":")[0]
    make_project(desk, url.replace(drivername, ASYNC_DRIVERS[drivername], 1), "env_async.py", "async")
    assert_once(upgrade_together(desk))


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_an_index_is_made_concurrently_while_others_come_back(desk: Desk, url: str) -> None:
    """The way of the page for CREATE INDEX CONCURRENTLY; the lock outlives the commit before it, too."""
    make_project(desk, url, "env_concurrently.py", more=CONCURRENTLY)
    assert_once(upgrade_together(desk))


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_an_index_made_concurrently_waits_for_each_waiter(desk: Desk, url: str) -> None:
    """The trap of the page: the second waits in vain, until its timeout is over."""
    make_project(desk, url, "env.py", more=CONCURRENTLY)
    env = desk.folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace("timeout=600", "timeout=4"))
    programs = [desk.start("python", "-m", "alembic", "upgrade", "head") for _ in range(2)]
    assert sorted(program.end() for program in programs) == [0, 1]
    assert any("LockTimeoutError" in program.said for program in programs)


def test_an_upgrade_whose_lock_is_lost_fails_in_the_end(desk: Desk, url: str) -> None:
    """The migrations run on to their end, then the command fails."""
    make_project(desk, url, "env.py", more="time.sleep(3)")
    program = desk.start("python", "-m", "alembic", "upgrade", "head")
    program.wait_for("upgrading to two")
    assert desk.run("dlock", "terminate", "alembic", "--yes")[0] == 0
    assert program.end() != 0
    assert "LockLostError" in program.said
    assert desk.run("python", "-m", "alembic", "current")[1].rstrip().endswith("two (head)")


def test_a_script_takes_no_lock(desk: Desk, url: str) -> None:
    """`--sql` goes through another function."""
    make_project(desk, url, "env.py")
    assert desk.run("python", "-m", "alembic", "upgrade", "head", "--sql")[0] == 0
    assert not list(Path(desk.folder).glob("*.dlock"))


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_the_next_one_goes_on_when_the_one_that_migrates_is_killed(desk: Desk, url: str) -> None:
    """Where migrations are transactions; elsewhere half of one may be left, which is Alembic's matter."""
    make_project(desk, url, "env.py", more="time.sleep(60 * (not __import__('os').path.exists('second')))")
    first = desk.start("python", "-m", "alembic", "upgrade", "head")
    first.wait_for("upgrading to two")
    second = desk.start("python", "-m", "alembic", "upgrade", "head")
    (desk.folder / "second").touch()
    first.kill()
    assert second.end() == 0
    engine = sa.create_engine(url)
    assert sa.inspect(engine).has_table("two")
    engine.dispose()
