"""A signal handler raises at every moment of a provider's close: the next close ends what is left."""

from __future__ import annotations

import pytest

from dlock_core import LockProvider
from tests.contract.house import House, until

from .stepping import interrupted_at

MANY = 15


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-pymysql"})
def test_a_close_that_was_interrupted_at_any_moment_can_be_repeated(house: House) -> None:
    """No session is left for the end of the process, which may be far."""
    before = house.witness.sessions()
    kept = []
    moment, hit = 0, True
    while hit:
        moment += 1
        provider = house.new_provider(share_sessions=False)
        assert isinstance(provider, LockProvider)
        kept.append(provider)  # else the collector would end what is left
        persons = [house.person(provider) for _ in range(3)]
        for number, person in enumerate(persons):
            assert person.acquire((moment, number))
        assert house.witness.sessions() == before + 3
        with interrupted_at(moment) as stepper:
            provider.close()
        hit = stepper.hit
        provider.close()
        until(lambda: house.witness.sessions() == before, f"all sessions to end, interrupted at {stepper.where}")
    assert moment > MANY
