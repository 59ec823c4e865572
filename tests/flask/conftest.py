"""One place for each test on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .places import DRIVERS, Place, Site


@pytest.fixture(params=list(DRIVERS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A database of each kind; nothing may be left in it."""
    place = Place(request.param, tmp_path)
    yield place
    place.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Place]:
    """For what does not depend on the database."""
    place = Place("sqlite", tmp_path)
    yield place
    place.close()


@pytest.fixture
def site(place: Place) -> Site:
    """An application on each database."""
    return place.site()
