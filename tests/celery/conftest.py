"""A site and its workers, once for each module; a stage for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .sites import PAIRS, PRODUCT, Site, open_site
from .stage import Stage
from .workers import Worker


@pytest.fixture(scope="module", params=PRODUCT if os.environ.get("DLOCK_TEST_ALL") else PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A broker and a database."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def site(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site of a pair."""
    with open_site(*pair, tmp_path_factory.mktemp("site")) as opened:
        yield opened


@pytest.fixture(scope="module")
def prefork(site: Site) -> Iterator[Worker]:
    """A worker with three processes, at that site."""
    with Worker("prefork", site.configuration, site.folder, "-P", "prefork", "-c", "3") as worker:
        yield worker


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage of this test's own; its path is the key."""
    return Stage(tmp_path / "stage")


@pytest.fixture
def worker(prefork: Worker, site: Site, stage: Stage) -> Iterator[Worker]:
    """The module's worker; after each test the server holds no lock."""
    yield prefork
    stage.open()
    site.assert_all_free()
