"""`divandb board init` and `divandb board check`: boards on Apache Kafka, set up and looked at."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from divandb import datadir, provision
from divandb.board.base import Unreachable
from divandb.cli import boards, options
from divandb.cli.boards import POOR, SILENT, WRONG
from divandb.cli.run import one_line_errors
from divandb.cli.tables import table
from divandb.cluster.topics import principal_of
from divandb.config import BoardAccess, Member
from divandb.configfile import (
    BoardFile,
    ConfigFileError,
    KafkaFile,
    NodeFile,
    is_kafka_url,
    is_of_a_node,
    kafka_given,
    read_boards,
    read_node,
)
from divandb.layout import kafka_of
from divandb.localkafka import LOCAL
from divandb.provision import Positions, Report
from divandb.store import file as store_file
from divandb.store import positions
from divandb.store.file import FILE_NAME, Disk

CACHE_BYTES = 2**20


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The boards' file, as `divandb up --print-config --board URL` writes one.",
)
@options.data
@options.kafka
def init(path: Path | None, data: Path, url: str | None) -> None:
    """Make topics, principals and rights on Apache Kafka, or bring them up to date, and check them.

    For the members of FILE, or of the data folder. Settings of a topic that is there stay as they
    are. The exit status is 1 if nodes cannot work there, 3 if they can and something is not as it
    was asked for, 75 if no broker answers.
    """
    with one_line_errors():
        found, places = _file(path, data, url)
        if not found.admin.principal and found.admin.kafka.has_principals:
            raise ConfigFileError("it takes an admin: set DIVANDB_BOARD_ADMIN_SECRET")
        with _answering():
            report = asyncio.run(_init(found, places))
    _finish(report, is_short=True)


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The boards' file, or a node's: then what that node may do is checked.",
)
@options.data
@options.kafka
def check(path: Path | None, data: Path, url: str | None) -> None:
    """Show offsets, lag and rights on Apache Kafka, and what is wrong.

    For the members of FILE, or of the data folder. The exit status is 1 if nodes cannot work there,
    3 if they can and something is not as it was asked for, 75 if no broker answers.
    """
    with one_line_errors():
        found, places = _file(path, data, url)
        with _answering():
            report = asyncio.run(provision.check(found, places))
    _finish(report, is_short=False)


async def _init(file: KafkaFile, places: Positions) -> Report:
    await provision.init(file)
    return await provision.check(file, places)


# What it is about


def _file(path: Path | None, data: Path, url: str | None) -> tuple[KafkaFile, Positions]:
    """The boards and their members, and how far those are whose files are here."""
    if path is None:
        return _of_folder(data, url)
    if is_of_a_node(path):
        return _of_node(read_node(path, os.environ), path)
    found = read_boards(path, os.environ)
    if isinstance(found, BoardFile):
        raise ConfigFileError(f"{path}: the embedded board sets itself up at each start")
    return found, {}


def _of_folder(data: Path, url: str | None) -> tuple[KafkaFile, Positions]:
    if url is None:
        running = datadir.read_cluster(data)
        url = running.board if running is not None else ""
    if url != LOCAL and not is_kafka_url(url):
        raise ConfigFileError("it is for Apache Kafka: give --board kafka://HOST:PORT, or --config")
    admin, settings = boards.given(data, url)
    found = kafka_of(data, admin, settings)
    if not found.members:
        raise ConfigFileError(f"{data} has no nodes yet: `divandb up` makes them")
    return found, {one.name: _positions(data / one.name) for one in found.members}


def _of_node(file: NodeFile, path: Path) -> tuple[KafkaFile, Positions]:
    config = file.config
    if config.board is None or not config.board.is_kafka:
        raise ConfigFileError(f"{path}: board.url is not that of Apache Kafka")
    _, settings = kafka_given(config.board.url, os.environ)
    nobody = BoardAccess(config.board.url, "", "", config.board.kafka)
    members: tuple[Member, ...] = (config.member, *config.seeds)
    found = KafkaFile(
        nobody,
        config.keys.cluster,
        members,
        {principal_of(config.member): config.board.secret},
        settings,
    )
    return found, {config.name: _positions(config.data)}


def _positions(folder: Path) -> list[positions.Position]:
    """How far a node's file says that it has read; nothing if it is not here."""
    path = folder / FILE_NAME
    if not path.exists():
        return []
    connection = store_file.connect(Disk(path), readonly=True, cache_bytes=CACHE_BYTES)
    try:
        return positions.read_all(connection)
    finally:
        connection.close()


# What is printed


def _finish(report: Report, *, is_short: bool) -> None:
    text = shown(report, is_short=is_short)
    if text:
        click.echo(text)
    for line in [*report.wrong, *report.poor]:
        click.echo(f"divandb: {line}", err=True)
    sys.exit(WRONG if report.wrong else POOR if report.poor else 0)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Ends the command if no broker answers."""
    try:
        yield
    except Unreachable as problem:
        click.echo(f"divandb: {problem.reason}", err=True)
        sys.exit(SILENT)


def shown(report: Report, *, is_short: bool) -> str:
    """The report as tables; ``is_short``: of topics alone."""
    offsets = [
        [info.topic, str(number), str(place.start), str(place.end), str(info.message_bytes_max)]
        for info in report.topics
        for number, place in enumerate(info.partitions)
    ]
    parts = [table([["TOPIC", "PARTITION", "START", "END", "MESSAGE BYTES"], *offsets])]
    if not is_short and report.readers:
        lags = [
            [one.node, one.topic, str(one.partition), str(one.next), _lag(one.lag)]
            for one in report.readers
        ]
        parts.append(table([["NODE", "TOPIC", "PARTITION", "NEXT", "LAG"], *lags]))
    if not is_short and report.rights:
        rights = [
            [name, topic, " ".join(sorted(has)) or "-"]
            for name, topics in report.rights.items()
            for topic, has in topics.items()
        ]
        parts.append(table([["PRINCIPAL", "TOPIC", "MAY"], *rights]))
    return "\n\n".join(parts)


def _lag(lag: int | None) -> str:
    return "another log" if lag is None else str(lag)
