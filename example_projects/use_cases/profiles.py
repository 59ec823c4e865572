"""A decorator: each call runs under a lock whose key comes from its arguments."""

from __future__ import annotations

import os
import sys
import time

import sqlalchemy as sa

from dlock_core import LockProvider

engine = sa.create_engine(os.environ.get("DATABASE_URL", "sqlite:///app.db"))
locks = LockProvider(engine)
profiles = sa.Table(
    "profiles",
    sa.MetaData(),
    sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("names", sa.String(1000), nullable=False),
)


@locks.locked("profile:{user_id}", timeout=10)
def add_name(user_id: int, name: str) -> None:
    """Read, think, write: what must not happen twice at the same time for the same user."""
    with engine.begin() as connection:
        names = connection.scalar(sa.select(profiles.c.names).where(profiles.c.user_id == user_id))
    time.sleep(0.05)
    with engine.begin() as connection:
        if names is None:
            connection.execute(profiles.insert().values(user_id=user_id, names=name))
        else:
            connection.execute(profiles.update().where(profiles.c.user_id == user_id).values(names=f"{names},{name}"))


if __name__ == "__main__":
    with locks.lock("schema"):
        profiles.create(engine, checkfirst=True)
    add_name(int(sys.argv[1]), sys.argv[2])
