"""Which room may import which: read from the source of every module, imports inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlock_core
from dlock_core import adapters

ROOT = Path(dlock_core.__file__).parents[1]  # where the packages are: the tree, or what a wheel installed
ADAPTERS = ("dlock_celery", "dlock_django", "dlock_flask")
PUBLIC = {
    "dlock_core": dlock_core.__all__,
    "dlock_core.adapters": adapters.__all__,
    "dlock_core.cli": ["dlock_commands", "lazy_commands"],
}

# The rooms of dlock_core, lowest first; a room imports from the layers below it, and from itself.
LAYERS = (
    {"errors", "keys"},
    {"dialects", "templates"},
    {"sessions"},
    {"coordination"},
    {"lock", "fencing", "inspection"},
    {"provider", "sadlock"},
    {"adapters", "cli", "contrib"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TOP = len(LAYERS) - 1
LIBRARIES = {
    "cli": {"sqlalchemy", "click", "rich"},
    "contrib": {"sqlalchemy", "opentelemetry", "prometheus_client", "pytest"},
}


def imports(module: str, source: str) -> Iterator[tuple[str, str]]:
    """Find what a module imports, as (module, name); a package is given as `package.__init__`."""
    here = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join(filter(None, (*above, node.module)))
            yield from ((origin, alias.name) for alias in node.names)


def room_of(module: str, name: str = "") -> str:
    """Return the room of a module of dlock_core, "" for the package itself."""
    inside = [*module.split(".")[1:], name if name in LEVEL else ""]
    return inside[0].removesuffix("__init__")


def complaint(module: str, origin: str, name: str) -> str | None:  # noqa: PLR0911 - a rule a line
    """Say what is wrong with an import, None for nothing."""
    package, library = module.partition(".")[0], origin.partition(".")[0]
    if library in sys.stdlib_module_names:
        return None
    if package in ADAPTERS and library != "dlock_core":
        return "adapters do not know one another" if library in ADAPTERS and library != package else None
    if package in ADAPTERS:
        return None if name in PUBLIC.get(origin, ()) else "an adapter takes dlock_core's public names only"
    room = room_of(module)
    if library != "dlock_core":
        return None if library in LIBRARIES.get(room, {"sqlalchemy"}) else f"{room} does without {library}"
    used = room_of(origin, name)
    if used == room or not room or (not used and LEVEL.get(room) == TOP):
        return None
    if {room, used} - LEVEL.keys():
        return "a new room needs a place in LAYERS"
    below = LEVEL[used] < LEVEL[room] or (room, used) in {
        ("keys", "errors"),
        ("contrib", "adapters"),
        ("cli", "adapters"),
    }
    return None if below else f"{used} is not below {room}"


def complaints(module: str, source: str) -> list[str]:
    """Return all that is wrong with the imports of a module."""
    found = [(*one, complaint(module, *one)) for one in imports(module, source)]
    return [f"{module}: {origin} {name}: {reason}" for origin, name, reason in found if reason]


def modules() -> dict[str, str]:
    """Return the source of every module of the four packages."""
    paths = [path for package in ("dlock_core", *ADAPTERS) for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8") for path in paths}


def test_a_room_imports_only_what_lies_below_it() -> None:
    """No framework, no driver, nothing upwards, in any module; the message names each offence."""
    sources = modules()
    assert {"dlock_core.__init__", "dlock_core.provider", "dlock_celery.__init__"} < sources.keys()
    assert [line for module, source in sources.items() for line in complaints(module, source)] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dlock_core.keys", "from .provider import LockProvider"),
        ("dlock_core.keys", "from . import provider"),
        ("dlock_core.keys", "from dlock_core.coordination import coordinator"),
        ("dlock_core.keys", "from dlock_core import LockProvider"),
        ("dlock_core.errors", "from .keys import int64"),
        ("dlock_core.dialects.postgresql", "import psycopg"),
        ("dlock_core.dialects.postgresql", "from ..sessions.session import SqlSession"),
        ("dlock_core.dialects.postgresql", "if TYPE_CHECKING:\n    from ..sessions import session"),
        ("dlock_core.sessions.session", "def probe():\n    import psycopg"),
        ("dlock_core.sessions.session", "try:\n    import asyncpg.exceptions\nexcept ImportError:\n    pass"),
        ("dlock_core.inspection.__init__", "from ..provider import LockProvider"),
        ("dlock_core.provider", "from django.db import connections"),
        ("dlock_core.provider", "import click"),
        ("dlock_core.provider", "from .cli import main"),
        ("dlock_core.provider", "import dlock_flask"),
        ("dlock_core.brand_new", "from .errors import LockError"),
        ("dlock_core.cli.source", "import flask"),
        ("dlock_django.commands", "from dlock_core.coordination.coordinator import Coordinator"),
        ("dlock_django.commands", "from dlock_core import provider"),
        ("dlock_django.commands", "from dlock_core import *"),
        ("dlock_django.commands", "import dlock_core"),
        ("dlock_celery.tasks", "from dlock_django import lock"),
        ("dlock_celery.tasks", "if TYPE_CHECKING:\n    import dlock_flask"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, line: str) -> None:
    """Each of these would be a mistake."""
    assert len(complaints(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dlock_core.dialects.postgresql", "from .base import Capabilities\nfrom .. import keys\nimport sqlalchemy"),
        ("dlock_core.cli.source", "import click\nfrom dlock_core import LockProvider\nfrom .group import dlock"),
        ("dlock_core.__init__", "from .provider import LockProvider"),
        ("dlock_django.commands", "from dlock_core import LockProvider\nfrom .settings import x\nimport django.db"),
    ],
)
def test_an_import_along_the_arrows_is_let_through(module: str, line: str) -> None:
    """The check is no obstacle."""
    assert complaints(module, line) == []


BLOCKED = (
    "django",
    "celery",
    "flask",
    "click",
    "rich",
    "psycopg",
    "psycopg2",
    "asyncpg",
    "aiosqlite",
    "pymysql",
    "MySQLdb",
    "aiomysql",
    "asyncmy",
    "pyodbc",
    "oracledb",
    "opentelemetry",
    "prometheus_client",
)
PROGRAM = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from dlock_core import *
import dlock_core
with dlock_core.LockProvider("sqlite://") as locks, locks.lock("k"):
    print("works")
"""


def test_the_core_works_with_no_framework_and_no_driver_installed() -> None:
    """Importing it, making a lock and holding it, in a process that can import none of them."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "works\n", "")


SYNC = """
from dlock_core import LockProvider
with LockProvider("sqlite://") as locks, locks.lock("k"):
    import sys
    print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("used", "loaded"),
    [
        ("import dlock_core", []),
        ("import dlock_core.contrib.pytest_plugin", ["contrib", "contrib.pytest_plugin"]),
        ("from dlock_core import LockError", ["errors"]),
    ],
)
def test_the_package_itself_loads_nothing(used: str, loaded: list[str]) -> None:
    """A project that has it installed, and tests that use no fixture of it, do not pay for it."""
    program = f"import sys; {used}; print([name for name in sys.modules if name.startswith(('dlock_', 'sqlalchemy'))])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == f"{['dlock_core', *(f'dlock_core.{name}' for name in loaded)]}\n"


def test_locks_of_threads_load_no_async_driver_and_no_other_room() -> None:
    """Neither SQLAlchemy's ORM and async side, nor sqlalchemy-dlock's interface, fencing or the command line."""
    run = subprocess.run([sys.executable, "-c", SYNC], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(run.stdout.split())
    assert "dlock_core.provider" in loaded
    rooms = {"dlock_core.sadlock", "dlock_core.fencing", "dlock_core.cli", "dlock_core.contrib", "dlock_core.adapters"}
    assert not loaded & {*rooms, "aiosqlite", "asyncpg", "aiomysql", "sqlalchemy.orm", "sqlalchemy.ext.asyncio"}


def test_importing_the_core_loads_no_driver_and_no_framework() -> None:
    """Also when they are installed: an import must not cost what is not used."""
    program = f"import sys; from dlock_core import *; print(sorted(sys.modules.keys() & set({BLOCKED!r})))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"
