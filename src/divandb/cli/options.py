"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from divandb.configfile import is_kafka_url
from divandb.datadir import is_admin
from divandb.localkafka import LOCAL

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


def node(command: F) -> F:
    """`--url URL`, as ``url``: a cluster anywhere."""
    return click.option(
        "--url",
        metavar="URL",
        help="A node of a cluster anywhere; its admin by DIVANDB_ADMIN or in the URL.",
    )(command)


def as_json(command: F) -> F:
    """`--json`, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def kafka(command: F) -> F:
    """`--board URL`, as ``url``: boards on Apache Kafka."""
    return click.option(
        "--board",
        "url",
        envvar="DIVANDB_BOARD_URL",
        show_envvar=True,
        metavar="URL",
        callback=kafka_url,
        help="The Event Boards: kafka://HOST:PORT[,HOST:PORT]..., or kafka-local: a broker that "
        "`divandb up` runs in the data folder.",
    )(command)


def kafka_url(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Check that an option's value says where boards on Kafka are."""
    if value is not None and value != LOCAL and not is_kafka_url(value):
        raise click.BadParameter(f"must be kafka://HOST:PORT[,HOST:PORT]... or {LOCAL}")
    return value


def credentials(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Check that an option's value is `USER:PASSWORD`."""
    if value is not None and not is_admin(value):
        raise click.BadParameter("must be USER:PASSWORD")
    return value
