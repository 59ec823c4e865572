"""Measures how large dlock_core is for a reader: `make house`.

    python -m benchmarks.house

None of the figures is a target to be gamed; each says how much fits in one head.
"""

from __future__ import annotations

import ast
import io
import tokenize
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import dlock_core

__all__ = ["Measure", "lines_of_code", "measures"]

CORE = Path(dlock_core.__file__).parent
# What one lock on one server goes through.
EVENING_PATH = (
    *("errors.py", "keys.py", "lock.py", "provider.py", "coordination", "sessions"),
    *("dialects/base.py", "dialects/postgresql.py"),
)
# What is not counted, since it is a second product under one roof.
APART = ("leases", "semaphore.py")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


class Measure(NamedTuple):
    """One figure."""

    what: str
    now: int
    aim: int


def measures() -> list[Measure]:
    """Measure all that can be measured here."""
    modules = _modules(CORE)
    layers: tuple[set[str], ...] = import_module("tests.unit.test_imports").LAYERS
    evening = [module for part in EVENING_PATH for module in _modules(CORE / part)]
    found = [
        Measure("entries at the top of dlock_core", len(_entries()), 16),
        Measure("modules of dlock_core", len(modules), 50),
        Measure("lines of dlock_core", sum(len(_read(module).splitlines()) for module in modules), 9000),
        Measure("lines of code on the evening path", sum(lines_of_code(_read(module)) for module in evening), 3000),
        Measure("layers of imports", len(layers), 7),
    ]
    if find_spec("benchmarks.path"):
        path = import_module("benchmarks.path").measure()
        found += [
            Measure("frames of a free acquire in a thread", path.frames, 11),
            Measure("calls of it", path.calls, 30),
            Measure("files that it goes through", path.files, 9),
        ]
    return found


def lines_of_code(source: str) -> int:
    """Count the lines with code on them: no docstring, no comment, no blank."""
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def _entries() -> list[Path]:
    return [entry for entry in CORE.iterdir() if entry.name not in {"__pycache__", "py.typed"}]


def _modules(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [module for module in sorted(place.rglob("*.py")) if module.relative_to(CORE).parts[0] not in APART]


def _read(module: Path) -> str:
    return module.read_text(encoding="utf-8")


def main() -> None:
    """Print the figures beside what they should be."""
    for what, now, aim in measures():
        print(f"{what:40} {now:6,}  aim {aim:6,}{'' if now <= aim else '  !'}")


if __name__ == "__main__":
    main()
