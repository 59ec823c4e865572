"""The wheel: what an installer puts on a user's machine, and what not. Built once for all tests here."""

from __future__ import annotations

import configparser
import email
import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # built once, by pip, which needs its index

ROOT = Path(__file__).parents[2]
PACKAGES = ("dlock_celery", "dlock_core", "dlock_django", "dlock_flask")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources: a build leaves its traces, and another may be editing the originals."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Iterator[zipfile.ZipFile]:
    """Build the wheel."""
    command = [sys.executable, "-m", "build", "--wheel", str(sources)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def written(wheel: zipfile.ZipFile, name: str) -> str:
    """Read a file of the wheel's metadata."""
    (path,) = (path for path in wheel.namelist() if path.partition("/")[2] == name and ".dist-info/" in path)
    return wheel.read(path).decode()


def test_the_wheel_has_the_four_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No tests of ours, no benchmarks, no stray folder that would land in every site-packages."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    for_users = {
        "dlock_core/contrib/testing.py",
        "dlock_core/contrib/pytest_plugin.py",
        "dlock_django/pytest_plugin.py",
        "dlock_django/test.py",
    }
    assert {name for name in wheel.namelist() if "test" in name.lower() or "__pycache__" in name} == for_users


def test_the_wheel_has_every_file_of_the_packages(wheel: zipfile.ZipFile, sources: Path) -> None:
    """Sub-packages and data files too: what is missing breaks only on a user's machine."""
    there = {
        path.relative_to(sources).as_posix()
        for package in PACKAGES
        for path in (sources / package).rglob("*")
        if path.is_file()
    }
    assert there - set(wheel.namelist()) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    """Without py.typed, type checkers ignore our annotations."""
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_wheel_installs_the_dlock_command(wheel: zipfile.ZipFile) -> None:
    """It leads to a function that exists."""
    parser = configparser.ConfigParser()
    parser.read_string(written(wheel, "entry_points.txt"))
    assert set(parser["console_scripts"]) == {"dlock"}
    module, _, function = parser["console_scripts"]["dlock"].partition(":")
    assert f"{module.replace('.', '/')}/__init__.py" in wheel.namelist()
    assert callable(getattr(importlib.import_module(module), function))
    assert dict(parser["pytest11"]) == {"dlock": "dlock_core.contrib.pytest_plugin"}


def test_the_wheel_needs_sqlalchemy_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Drivers, frameworks and the command line's libraries are extras."""
    required = email.message_from_string(written(wheel, "METADATA")).get_all("Requires-Dist", [])
    always = [requirement for requirement in required if "extra ==" not in requirement]
    assert [requirement.partition("[")[0].lower() for requirement in always] == ["sqlalchemy"]


def test_the_wheel_carries_its_licence(wheel: zipfile.ZipFile) -> None:
    """The text itself, and its name for tools."""
    assert written(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert email.message_from_string(written(wheel, "METADATA"))["License-Expression"] == "BSD-3-Clause"


def lower_bounds(requirements: list[str]) -> dict[str, Version]:
    """Return the least version that is asked of each package."""
    found: dict[str, Version] = {}
    for requirement in map(Requirement, requirements):
        for specifier in requirement.specifier:
            if specifier.operator in {">=", "=="}:
                found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def test_the_lowest_versions_that_tox_installs_are_those_that_are_promised() -> None:
    """Else a promise would go untested, or the test would be of something else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    promised = lower_bounds([*project["dependencies"], *extras])
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = lower_bounds([line for line in lines if line and not line.startswith("#")])
    assert promised.keys() - {"dlock-suite"} <= tested.keys()
    assert {name: version for name, version in tested.items() if promised.get(name, version) != version} == {}
