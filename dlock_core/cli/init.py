"""`dlock init`: make the table that `fence` needs."""

from __future__ import annotations

import click
from sqlalchemy import MetaData, create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from ..fencing import fence_table
from ..urls import shown_url
from .target import parse_target, refusal_of, refuse_async

__all__ = ["init"]


@click.command()
@click.argument("url", envvar="DLOCK_URL")
def init(url: str) -> None:
    """Make the table `dlock_fences`, for fencing tokens, in the database at URL (or $DLOCK_URL).

    Locks need no table. Applications with migrations define it there, with `fence_table(metadata)`.
    """
    target = parse_target(url)
    refuse_async(target)
    metadata = MetaData()
    table = fence_table(metadata)
    try:
        engine = create_engine(target)
        existed = inspect(engine).has_table(table.name)
        metadata.create_all(engine)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise refusal_of(target, error) from None
    engine.dispose()
    click.echo(f"{table.name} {'was there already' if existed else 'made'} in {shown_url(target)}")
