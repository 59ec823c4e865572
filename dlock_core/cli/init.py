"""`dlock init`: make the tables that some features need."""

from __future__ import annotations

import click
from sqlalchemy import MetaData, create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from ..fencing import fence_table
from ..names import name_table
from ..urls import shown_url
from .holders import print_json
from .target import parse_target, refusal_of, refuse_async

__all__ = ["init"]


@click.command()
@click.argument("url", envvar="DLOCK_URL")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def init(url: str, *, as_json: bool) -> None:
    """Make the optional tables in the database at URL (or $DLOCK_URL).

    `dlock_fences` is for fencing tokens, `dlock_names` for `dlock name`. Locks need neither. Applications with
    migrations define them there, with `fence_table(metadata)` and `name_table(metadata)`.
    """
    target = parse_target(url)
    refuse_async(target)
    metadata = MetaData()
    tables = [fence_table(metadata), name_table(metadata)]
    try:
        engine = create_engine(target)
        existed = {table.name: inspect(engine).has_table(table.name) for table in tables}
        metadata.create_all(engine)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise refusal_of(target, error) from None
    engine.dispose()
    if as_json:
        print_json([{"table": name, "made": not there, "url": shown_url(target)} for name, there in existed.items()])
    else:
        for name, there in existed.items():
            click.echo(f"{name} {'was there already' if there else 'made'} in {shown_url(target)}")
