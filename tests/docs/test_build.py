"""The documentation builds without a warning, and its reference has every public name once."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import click
import pytest

from dlock_core.cli.group import dlock
from tests.browsers import chromium

ROOT = Path(__file__).parents[2]
# Whose names users import.
MODULES = (
    "dlock_celery",
    "dlock_celery.signals",
    "dlock_core",
    "dlock_core.cli",
    "dlock_core.contrib.opentelemetry",
    "dlock_core.contrib.prometheus",
    "dlock_core.contrib.pytest_plugin",
    "dlock_core.sadlock",
    "dlock_core.contrib.testing",
    "dlock_django",
    "dlock_django.pytest_plugin",
    "dlock_django.signals",
    "dlock_django.test",
    "dlock_flask",
    "dlock_flask.signals",
)
# In `__all__` for their own package only.
INTERNAL = {"dlock_flask.signals.send"}
# https://www.sphinx-doc.org/en/master/usage/extensions/intersphinx.html: four lines for people, then packed lines.
HEADER_LINES = 4
# What a reader would miss: pictures that do not show, Python without colours; and where the links of the page lead.
LOOK = """
    return {
        pictures: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
        plain: [...document.querySelectorAll("div.highlight-python pre")]
            .filter(code => !code.querySelector("span[class]")).map(code => code.innerText),
        links: [...document.links].map(link => link.href).filter(address => address.startsWith("file:")),
    }
"""
ENTRY = re.compile(r"(?P<name>.+?) (?P<kind>\S+:\S+) -?\d+ \S+ .+")


class Built(NamedTuple):
    """What came of one build."""

    pages: Path
    code: int
    warnings: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the pages, as `make docs` does."""
    pages = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "docs", str(pages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return Built(pages, done.returncode, done.stderr)


@pytest.fixture(scope="module")
def inventory(built: Built) -> dict[str, set[str]]:
    """Return the names that the pages describe, by their kind."""
    *_, packed = (built.pages / "objects.inv").read_bytes().split(b"\n", HEADER_LINES)
    found: dict[str, set[str]] = {}
    for line in zlib.decompress(packed).decode().splitlines():
        entry = ENTRY.match(line)
        assert entry, line
        found.setdefault(entry["kind"], set()).add(entry["name"])
    return found


def public_names() -> dict[int, set[str]]:
    """Return the public names of each object; some have several."""
    names: dict[int, set[str]] = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            if full not in INTERNAL:
                names.setdefault(id(getattr(module, name)), set()).add(full)
    return names


def test_there_is_no_warning(built: Built) -> None:
    """A name that leads nowhere is one, and so is a page that nothing reaches."""
    assert (built.code, built.warnings) == (0, "")


def test_each_public_name_is_described_once(inventory: dict[str, set[str]]) -> None:
    """Twice under one name would be a warning, twice under two names is caught here."""
    described = {name for kind, found in inventory.items() if kind.startswith("py:") for name in found}
    times = {min(names): len(names & described) for names in public_names().values()}
    assert {name: count for name, count in times.items() if count != 1} == {}


def test_the_command_line_has_each_verb_with_its_options(inventory: dict[str, set[str]]) -> None:
    """Each under its own verb."""
    verbs = {"": dlock, **{f"-{name}": verb for name, verb in dlock.commands.items()}}
    options = {
        f"dlock{verb}.{max(option.opts, key=len)}"
        for verb, command in verbs.items()
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert len(verbs) > 6
    assert options <= inventory["std:cmdoption"]


def test_pictures_show_code_is_coloured_and_links_hold(built: Built, tmp_path: Path) -> None:
    """In a browser, on every page."""
    pages = [page for page in sorted(built.pages.rglob("*.html")) if page.name not in {"search.html", "genindex.html"}]
    assert len(pages) > 40
    targets: set[str] = set()
    with chromium(tmp_path) as browser:
        for page in pages:
            browser.get(page.as_uri())
            seen = browser.execute_script(LOOK)
            assert (page.name, seen["pictures"], seen["plain"]) == (page.name, [], [])
            targets.update(seen["links"])
    assert len(targets) > 200
    assert [target for target in sorted(targets) if not _leads_somewhere(target)] == []


def _leads_somewhere(address: str) -> bool:
    parts = urlsplit(address)
    page = Path(unquote(parts.path))
    return page.is_file() and (not parts.fragment or f'id="{unquote(parts.fragment)}"' in page.read_text())
