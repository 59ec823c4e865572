"""Who may import whom: read from the source of every module, imports inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import dlock_core

ROOT = Path(dlock_core.__file__).parents[1]  # where the packages are: the tree, or what a wheel installed
ADAPTERS = ("dlock_celery", "dlock_django", "dlock_flask")
OURS = ("dlock_core", *ADAPTERS)

# The parts of dlock_core, lowest first; a part imports from parts below it, for types too, and a
# package also from itself. A new module needs a place here.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "signals", "urls"),
    ("keys", "failures", "timeouts", "threads", "sockets", "sighting", "forgotten"),
    ("onebyone", "options", "engines", "templates"),
    ("requests", "watch"),
    ("events",),
    ("contexts",),
    ("dialects", "turnstile", "errands"),
    ("session", "stock"),
    ("opening",),
    ("tickets",),
    ("entries",),
    ("lenders",),
    ("owner_lender",),
    ("manager",),
    ("names",),
    ("lock", "inspection"),
    ("aio", "checks"),
    ("decorator", "sadlock", "fencing"),
    ("provider",),
    ("running",),
    ("__init__",),
    ("cli",),
    ("testing",),
    ("__main__", "opentelemetry", "prometheus", "pytest_plugin"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Parts that know no database: at run time they import nothing of ours but these.
PURE = (
    "errors",
    "signals",
    "keys",
    "timeouts",
    "threads",
    "requests",
    "contexts",
    "turnstile",
    "stock",
    "tickets",
    "entries",
)
PURE_MAY_USE = ("errors", "keys", "timeouts", "tickets")
WITHOUT_SQLALCHEMY = (
    "errors",
    "signals",
    "keys",
    "timeouts",
    "threads",
    "requests",
    "turnstile",
    "stock",
    "tickets",
    "entries",
    "templates",
    "decorator",
)
DIALECTS_MAY_USE = ("errors", "signals", "urls", "keys", "failures", "dialects")
# Extras, each for one library of others; nothing of ours imports them.
EXTRAS = {"opentelemetry": "opentelemetry", "prometheus": "prometheus_client", "pytest_plugin": "pytest"}
CLI_MAY_USE = ("sqlalchemy", "click", "rich")


class Import(NamedTuple):
    """One imported name: `from module import name`, or `import module` with an empty name."""

    module: str
    name: str
    for_types: bool

    def __str__(self) -> str:
        return f"from {self.module} import {self.name}" if self.name else f"import {self.module}"


def imports(module: str, source: str, *, package: bool = False) -> Iterator[Import]:
    """Find all imports of a module, the relative ones made absolute."""
    yield from _walk(ast.parse(source), module.split(".") if package else module.split(".")[:-1], for_types=False)


def _walk(node: ast.AST, package: list[str], *, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                yield from (Import(alias.name, "", for_types) for alias in names)
            case ast.ImportFrom(names=names, level=level):
                base = ".".join(package[: len(package) - level + 1] if level else [])
                origin = ".".join(filter(None, (base, child.module)))
                yield from (_from(origin, alias.name, for_types) for alias in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from _walk(ast.Module(child.body, []), package, for_types=True)
                yield from _walk(ast.Module(child.orelse, []), package, for_types=for_types)
            case _:
                yield from _walk(child, package, for_types=for_types)


def _from(origin: str, name: str, for_types: bool) -> Import:
    """Tell `from package import module` from `from module import name`."""
    path = ROOT.joinpath(*origin.split("."), name)
    if top(origin) in OURS and (path.with_suffix(".py").is_file() or path.is_dir()):
        return Import(f"{origin}.{name}", "", for_types)
    return Import(origin, name, for_types)


def top(module: str) -> str:
    """Return the package that a module is in."""
    return module.partition(".")[0]


def part_of(module: str) -> str:
    """Return the part of dlock_core that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def complaint(module: str, found: Import) -> str | None:
    """Say what is wrong with an import, None for nothing."""
    root, used = top(found.module), part_of(found.module)
    if root in sys.stdlib_module_names:
        return None
    if top(module) in ADAPTERS:
        return _complaint_adapter(top(module), found)
    if root == "dlock_core":
        return _complaint_core(part_of(module), used, for_types=found.for_types)
    return _complaint_foreign(part_of(module), root)


def _complaint_foreign(part: str, root: str) -> str | None:
    if EXTRAS.get(part) == root:
        return None
    if part == "cli":
        return None if root in CLI_MAY_USE else "the command line uses click, rich and SQLAlchemy only"
    if root != "sqlalchemy":
        return "the core uses SQLAlchemy and the standard library only"
    return "this part knows no database" if part in WITHOUT_SQLALCHEMY else None


def _is_public(found: Import) -> bool:
    return (found.module, found.name) == ("dlock_core.cli", "dlock_commands") or (
        found.module == "dlock_core" and found.name in dlock_core.__all__
    )


def _complaint_adapter(adapter: str, found: Import) -> str | None:
    root = top(found.module)
    if root == "dlock_core" and not _is_public(found):
        return "an adapter takes public names from dlock_core, and nothing else"
    if root in ADAPTERS and root != adapter:
        return "adapters do not know one another"
    return None


def _complaint_core(part: str, used: str, *, for_types: bool) -> str | None:
    if {part, used} - LEVEL.keys():
        return "a new part needs a place in LAYERS"
    if part == used and part in {"dialects", "cli", "sadlock"}:
        return None
    if LEVEL[used] >= LEVEL[part]:
        return f"{used} is not below {part}"
    if part in PURE and not for_types and used not in PURE_MAY_USE:
        return f"{part} uses {' and '.join(PURE_MAY_USE)} only"
    if part == "dialects" and used not in DIALECTS_MAY_USE:
        return f"dialects use {', '.join(DIALECTS_MAY_USE)} only"
    return None


def complaints(module: str, source: str, *, package: bool = False) -> list[str]:
    """Return all that is wrong with the imports of a module."""
    found = [(one, complaint(module, one)) for one in imports(module, source, package=package)]
    return [f"{module}: {one}: {reason}" for one, reason in found if reason]


def modules() -> dict[str, Path]:
    """Return every module of the four packages."""
    paths = [path for package in OURS for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def test_the_parts_import_only_what_lies_below_them() -> None:
    """No framework, no driver, nothing upwards, in any module; the message names each offence."""
    found = []
    for name, path in modules().items():
        module, package = name.removesuffix(".__init__"), name.endswith(".__init__")
        found += complaints(module, path.read_text(encoding="utf-8"), package=package)
    assert found == []


def test_every_module_is_looked_at() -> None:
    """The check would pass too if it found no modules, or took no import for one of ours."""
    assert {f"{package}.__init__" for package in OURS} < modules().keys()
    source = (ROOT / "dlock_core" / "provider.py").read_text(encoding="utf-8")
    found = {one.module for one in imports("dlock_core.provider", source)}
    assert {"dlock_core.aio", "dlock_core.manager", "sqlalchemy"} <= found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dlock_core.keys", "from .manager import Manager"),
        ("dlock_core.keys", "from . import manager"),
        ("dlock_core.keys", "import dlock_core.manager"),
        ("dlock_core.keys", "from dlock_core import LockProvider"),
        ("dlock_core.keys", "from .keys import int64"),
        ("dlock_core.keys", "from .timeouts import Deadline"),
        ("dlock_core.keys", "import sqlalchemy"),
        ("dlock_core.entries", "from .contexts import Context"),
        ("dlock_core.entries", "import sqlalchemy.util"),
        ("dlock_core.entries", "if TYPE_CHECKING:\n    from .provider import LockProvider"),
        ("dlock_core.entries", "if TYPE_CHECKING:\n    from sqlalchemy import Engine"),
        ("dlock_core.contexts", "if not TYPE_CHECKING:\n    from .threads import Workers"),
        ("dlock_core.contexts", "if TYPE_CHECKING:\n    pass\nelse:\n    from .threads import Workers"),
        ("dlock_core.dialects.postgresql", "import psycopg"),
        ("dlock_core.dialects.postgresql", "from ..session import SqlSession"),
        ("dlock_core.dialects.postgresql", "from .. import timeouts"),
        ("dlock_core.dialects.postgresql", "if TYPE_CHECKING:\n    from ..session import SqlSession"),
        ("dlock_core.session", "def probe():\n    import psycopg"),
        ("dlock_core.session", "try:\n    import asyncpg.exceptions\nexcept ImportError:\n    pass"),
        ("dlock_core.provider", "from django.db import connections"),
        ("dlock_core.provider", "import click"),
        ("dlock_core.provider", "from .cli import main"),
        ("dlock_core.provider", "import dlock_flask"),
        ("dlock_core.brand_new", "from .errors import LockError"),
        ("dlock_core.cli.target", "import flask"),
        ("dlock_django.commands", "from dlock_core.manager import Manager"),
        ("dlock_django.commands", "from dlock_core import manager"),
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
        ("dlock_core.entries", "if TYPE_CHECKING:\n    from .contexts import Context"),
        ("dlock_core.dialects.postgresql", "from .base import Capabilities\nfrom .. import keys\nimport sqlalchemy"),
        ("dlock_core.cli.target", "import click\nfrom dlock_core import LockProvider\nfrom .group import dlock"),
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


def test_importing_the_core_loads_no_driver_and_no_framework() -> None:
    """Also when they are installed: an import must not cost what nobody uses."""
    program = f"import dlock_core, sys; print(sorted(sys.modules.keys() & set({BLOCKED!r})))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"
