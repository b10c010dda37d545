"""`divandb events`: Write Events for others than nodes, and who those are."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import click

from divandb import datadir, hosts
from divandb.board.base import BoardError, EventBoard, Refused
from divandb.cli import boards, options
from divandb.cli.eventlines import as_json, as_line
from divandb.cli.folder import alone, board_of, running, tell
from divandb.clock import Rng, SystemRng
from divandb.cluster import topics, trust
from divandb.cluster.topics import check_reader, partition_of
from divandb.config import BoardAccess, TlsFiles
from divandb.configfile import (
    BOARD_ADMIN,
    BoardFile,
    ConfigFileError,
    ReaderFile,
    read_boards,
    read_reader,
    read_text,
    reader_entry,
    reader_text,
)
from divandb.datadir import BOARD, ClusterRecord, DataDirError
from divandb.follow import END, START, Follower, Item, open_board
from divandb.tls import Tls

SECRET_BYTES = 32
HEARD_S_MAX = 10.0
"""For the embedded board to hear of a change."""
POLL_S = 0.02


@click.group()
def events() -> None:
    """Follow all changes: Write Events from the boards, and who may read them."""


# Following


def _place(ctx: click.Context, option: click.Parameter, value: str | None) -> str | int | None:
    if value is None or value in (START, END):
        return value
    if not value.isascii() or not value.isdigit() or int(value) >= 2**63:
        raise click.BadParameter(f"must be {START}, {END} or an offset")
    return int(value)


def _slot(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            partition_of(value)
        except ValueError as problem:
            raise click.BadParameter(str(problem)) from None
    return value


@events.command()
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Who reads: a reader's file, a master's, or that of the boards.",
)
@options.data
@options.kafka
@click.option(
    "--from",
    "start",
    callback=_place,
    metavar="PLACE",
    help=f"{START}, {END}, or an offset of one partition.  [default: {END}, or {START} with "
    "--no-follow]",
)
@click.option("--slot", callback=_slot, help="What this master accepted: its partition alone.")
@click.option("--partition", type=click.IntRange(0), help="The same by number.")
@click.option(
    "--replicas",
    "group",
    callback=_slot,
    metavar="SLOT",
    help="Read the Replicas' Event Board of this slot: all that its master has applied.",
)
@click.option("--database", metavar="NAME", help="Events of this database only.")
@click.option("--json", "is_json", is_flag=True, help="A JSON object a line.")
@click.option(
    "--follow/--no-follow",
    default=True,
    show_default=True,
    help="Go on with what comes until Ctrl-C, or end where the log ends now.",
)
def tail(
    path: Path | None,
    data: Path,
    url: str | None,
    start: str | int | None,
    slot: str | None,
    partition: int | None,
    group: str | None,
    database: str | None,
    is_json: bool,
    follow: bool,
) -> None:
    """Print Write Events, one a line, as any reader of the Masters' Event Board gets them.

    For what runs in the data folder, or with the credentials in FILE.
    """
    if slot is not None and partition is not None:
        raise click.UsageError("--slot and --partition say the same: give one.")
    if group is not None and (slot is not None or partition is not None):
        raise click.UsageError("a Replicas' Event Board has one partition.")
    chosen = partition_of(slot) if slot is not None else 0 if group is not None else partition
    if isinstance(start, int) and chosen is None:
        raise click.UsageError("an offset is one of a partition: give --slot or --partition.")
    place = start if start is not None else END if follow else START
    with _one_line_errors():
        file = _of_folder(data, url) if path is None else read_reader(path, os.environ)
        topic = (
            topics.masters(file.cluster) if group is None else topics.replicas(file.cluster, group)
        )
        printer = _Printer(sys.stdout.buffer, is_json=is_json)

        async def run() -> None:
            board = open_board(file.access, SystemRng(), Tls(TlsFiles(ca=file.ca)).trusted)
            follower = Follower(board, topic, printer.show, _say, database=database)
            try:
                await follower.run(place, chosen, follow=follow)
            finally:
                await board.close()

        try:
            asyncio.run(run())
        except KeyboardInterrupt:
            pass  # how it is meant to end
        except BrokenPipeError:
            # Who reads has enough; what is still in the buffer would raise again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Printer:
    """Lines as they come, each at once."""

    def __init__(self, output: BinaryIO, *, is_json: bool) -> None:
        self._output = output
        self._is_json = is_json

    def show(self, item: Item) -> None:
        """Print a line."""
        line = as_json(item) if self._is_json else as_line(item).encode()
        self._output.write(line + b"\n")
        self._output.flush()


def _say(text: str) -> None:
    click.echo(f"divandb: {text}", err=True)


def _of_folder(data: Path, url: str | None) -> ReaderFile:
    """The admin of the folder's boards; on Kafka without an admin, a reader."""
    cluster = _cluster(data)
    if url is None:
        record = running(data)
        board = board_of(record)
        if board is not None:
            secret = trust.board_secret(datadir.read_secret(data), BOARD_ADMIN)
            return ReaderFile(BoardAccess(board.url, BOARD_ADMIN, secret), cluster)
        url = record.board
    admin, _ = boards.given(data, url)
    if admin.principal or not admin.kafka.has_principals:
        return ReaderFile(admin, cluster)
    for name, secret in datadir.read_readers(data).items():
        return ReaderFile(BoardAccess(admin.url, name, secret, admin.kafka), cluster)
    raise ConfigFileError(
        "it takes somebody who may read: set DIVANDB_BOARD_ADMIN_SECRET, or make a reader with "
        "`divandb events reader`"
    )


def _cluster(data: Path) -> str:
    return trust.keys_of(datadir.read_secret(data), "", "", "", is_master=False).cluster


# Who may


@events.command()
@click.argument("name")
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The boards' file, to which the reader is added.",
)
@options.data
@click.option("--remove", is_flag=True, help="Take the right away again.")
def reader(name: str, path: Path | None, data: Path, remove: bool) -> None:
    """Let NAME read the Masters' Event Board, and print its file for `divandb events tail`.

    A reader sees all that the cluster knows, passwords' hashes and settings too, and can change
    nothing. With what `divandb up` runs in the data folder it holds at once.
    """
    if path is not None and remove:
        raise click.UsageError("take its [[readers]] out of FILE by hand.")
    with _one_line_errors():
        if path is not None:
            click.echo(_added_to_file(path, name, SystemRng()), nl=False)
        elif remove:
            _remove(data, name)
        else:
            click.echo(_added_to_folder(data, name, SystemRng()), nl=False)


def _added_to_file(path: Path, name: str, rng: Rng) -> str:
    """Add the reader to the boards' file; its own."""
    with alone(path.resolve().parent):
        file = read_boards(path, {})
        admin = BOARD_ADMIN if isinstance(file, BoardFile) else file.admin.principal
        _check(name, {admin, *(one.name for one in file.members), *file.readers})
        secret = _secret(rng)
        text = read_text(path).rstrip("\n")
        datadir.write_private(path, f"{text}\n\n{reader_entry(name, secret)}")
    if isinstance(file, BoardFile):
        shown = file.config.tls.certificate
        ca = None if shown is None else hosts.tls_in(shown.parent).ca
        made = ReaderFile(BoardAccess(file.url, name, secret), file.cluster, ca)
        what = f"copy {path} to the board's host and send the board a SIGHUP"
    else:
        made = ReaderFile(_as(file.admin, name, secret), file.cluster)
        what = f"run `divandb board init --config {path}`"
    _say(f"this is {name}.toml: keep it secret. For it to hold, {what}")
    return reader_text(made)


def _added_to_folder(data: Path, name: str, rng: Rng) -> str:
    """Let it read the boards of what runs in the folder; its file."""
    with alone(data):
        record = running(data)
        readers = datadir.read_readers(data)
        members = [one.name for one in datadir.read_members(data)]
        _check(name, {BOARD_ADMIN, *members, *readers})
        secret = _secret(rng)
        board = board_of(record)
        if board is None:
            access = _as(boards.given(data, record.board)[0], name, secret)
        else:
            access = BoardAccess(board.url, name, secret)
            _keep_port(data, board.url)
        _change(data, record, readers, {**readers, name: secret}, access)
    _say(f"this is {name}.toml: keep it secret")
    return reader_text(ReaderFile(access, _cluster(data)))


def _remove(data: Path, name: str) -> None:
    with alone(data):
        readers = datadir.read_readers(data)
        if name not in readers:
            raise DataDirError(f"{data} has no reader {name}")
        record = running(data)
        board = board_of(record)
        left = {one: secret for one, secret in readers.items() if one != name}
        gone = BoardAccess("" if board is None else board.url, name, readers[name])
        _change(data, record, readers, left, gone)


def _change(
    data: Path,
    record: ClusterRecord,
    before: dict[str, str],
    readers: dict[str, str],
    changed: BoardAccess,
) -> None:
    """Remember the readers, and have the boards know. ``changed``: who is new, or gone."""
    board = board_of(record)
    if board is None:
        boards.check_admin(data, record.board)
    datadir.write_readers(data, readers)
    if board is not None:
        tell(board, signal.SIGHUP)
        topic = topics.masters(_cluster(data))
        asyncio.run(_until(changed, topic, may_read=changed.principal in readers))
        return
    try:
        boards.set_up(data, record.board, is_new=True)
    except ValueError:
        datadir.write_readers(data, before)
        raise


def _keep_port(data: Path, url: str) -> None:
    """What a reader's file says of the board's place is true after the next start, too."""
    ports = datadir.read_ports(data)
    datadir.write_ports(data, {**ports, BOARD: urlsplit(url).port or 0})


def _check(name: str, taken: Collection[str]) -> None:
    try:
        check_reader(name, taken)
    except ValueError as problem:
        raise ConfigFileError(f"no reader can be called so: {problem}") from None


def _secret(rng: Rng) -> str:
    return rng.token(SECRET_BYTES).hex()


def _as(access: BoardAccess, name: str, secret: str) -> BoardAccess:
    return dataclasses.replace(access, principal=name, secret=secret)


async def _until(access: BoardAccess, topic: str, *, may_read: bool) -> None:
    """Wait until the board has heard of it. Raises ``DataDirError`` if that takes too long."""
    board = open_board(access, SystemRng(), None)
    try:
        async with asyncio.timeout(HEARD_S_MAX):
            while await _may_read(board, topic) != may_read:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise DataDirError(
            "the board has not heard of it yet: it will hold when the board is there again"
        ) from None
    finally:
        await board.close()


async def _may_read(board: EventBoard, topic: str) -> bool | None:
    """``None``: nobody says."""
    try:
        await board.describe(topic)
    except Refused:
        return False
    except BoardError:
        return None
    return True


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Expected errors end the command with a line."""
    os.umask(0o077)  # what it writes is for its owner only
    try:
        yield
    except (DataDirError, BoardError, ValueError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
