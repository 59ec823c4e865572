"""What the server knows of the sessions under test: how many statements each has run, and whether by TLS."""

from __future__ import annotations

from tests.contract.house import House
from tests.contract.witnesses import MySQLWitness, PostgreSQLWitness

__all__ = ["encrypted", "statements"]

LAST_STATEMENTS = "SELECT pid, query_start, state FROM pg_stat_activity WHERE application_name LIKE 'dlock%'"
COUNTED = """
    SELECT processlist_id, variable_value FROM performance_schema.status_by_thread
    JOIN performance_schema.threads USING (thread_id)
    WHERE variable_name = 'Questions' AND processlist_id <> CONNECTION_ID()
"""


def statements(house: House) -> list[tuple[object, ...]]:
    """Return what changes at the server with each statement of a session under test."""
    witness = house.witness
    assert isinstance(witness, PostgreSQLWitness | MySQLWitness)
    rows = witness.all(LAST_STATEMENTS if isinstance(witness, PostgreSQLWitness) else COUNTED)
    return sorted(tuple(row) for row in rows)


def encrypted(house: House) -> bool:
    """Tell whether all sessions that hold a lock came by TLS."""
    witness = house.witness
    if isinstance(witness, PostgreSQLWitness):
        holders = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        return bool(witness.scalar(f"SELECT bool_and(ssl) FROM pg_stat_ssl WHERE pid IN ({holders})"))
    assert isinstance(witness, MySQLWitness)
    return {row[0] for row in witness.all(f"SELECT connection_type {witness.LOCKS}", status="GRANTED")} == {"SSL/TLS"}
