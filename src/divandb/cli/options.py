"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from divandb.datadir import is_admin

F = TypeVar("F", bound=Callable[..., object])


def data(command: F) -> F:
    """`--data DIR`, as ``data``."""
    return click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("divan-data"),
        show_default=True,
        help="The data folder.",
    )(command)


def credentials(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Check that an option's value is `USER:PASSWORD`."""
    if value is not None and not is_admin(value):
        raise click.BadParameter("must be USER:PASSWORD")
    return value
