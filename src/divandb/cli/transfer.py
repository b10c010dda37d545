"""`divandb import` and `divandb export`: documents from and to JSON lines, over HTTP."""

import contextlib
import dataclasses
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import click
import msgspec
from tqdm import tqdm

from divandb.cli import options
from divandb.cli.remote import AnswerTooLarge, Remote, RemoteError, connect, segment
from divandb.cli.rows import ROW_BYTES_MAX, BadRow, Document, Row, document, rows
from divandb.clock import SystemRng
from divandb.datadir import DataDirError

BATCH_BYTES_MAX = 4 * 2**20
PAGE_BYTES_MAX = 32 * 2**20
PAGE_BYTES_AIM = 4 * 2**20
PAGE_ROWS_MAX = 2000
PAGE_ROWS_MIN = 2
"""The last row of the page before, and one more."""
LEAST_PAGE_BYTES_MAX = 512 * 2**20
PROBLEMS_SHOWN_MAX = 20

F = TypeVar("F", bound=Callable[..., object])

# tqdm would start a thread to refresh bars that stand still.
tqdm.monitor_interval = 0


class BulkRow(msgspec.Struct):
    """What `_bulk_docs` says about one document."""

    error: str | None = None
    reason: str | None = None


class PageRow(msgspec.Struct):
    """A row of `_all_docs` with `include_docs`."""

    id: str
    doc: msgspec.Raw = msgspec.Raw(b"null")


class Page(msgspec.Struct):
    """An answer of `_all_docs`."""

    rows: list[PageRow]


class DatabaseInfo(msgspec.Struct):
    """What is used of `GET /{db}`."""

    doc_count: int
    doc_del_count: int


def _place(command: F) -> F:
    """The options that say where the node is."""
    command = options.data(command)
    command = click.option(
        "--user",
        metavar="USER:PASSWORD",
        callback=options.credentials,
        help="Default for the node of --data: DIVANDB_ADMIN, or what DATA/admin holds.",
    )(command)
    return click.option("--url", help="A node to talk to, instead of what runs in --data.")(command)


@click.command("import")
@click.argument("db")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@_place
@click.option("--id-field", metavar="F", help="The member to take each document's id from.")
@click.option(
    "--batch",
    type=click.IntRange(1, 10_000),
    default=500,
    show_default=True,
    metavar="N",
    help="Documents a request.",
)
def import_(
    db: str,
    file: Path,
    url: str | None,
    user: str | None,
    data: Path,
    id_field: str | None,
    batch: int,
) -> None:
    """Write the documents of FILE into the database DB, which is made if it is missing.

    FILE holds a JSON object a line, or one JSON array of objects; - is stdin. A row with `_rev`
    updates that revision, or becomes a new document where there is none. The exit status is 1 if
    a row could not be written.
    """
    with _one_line_errors(), _open_source(file) as source, _connected(url, user, data) as remote:
        with _import_bar(source) as bar:
            importer = Importer(Target(remote, db), bar, batch)
            try:
                for row in rows(source):
                    importer.take(row, id_field)
                importer.flush()
            finally:
                tally = importer.tally
                bar.write(f"{db}: {tally}", file=sys.stderr)
    sys.exit(1 if tally.conflicts or tally.failed else 0)


@dataclasses.dataclass
class Tally:
    """How many rows went which way."""

    written: int = 0
    conflicts: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.written} documents written, {self.conflicts} conflicts, {self.failed} failed"


class Target:
    """The database that is imported into."""

    def __init__(self, remote: Remote, db: str) -> None:
        self._remote = remote
        self._path = f"/{segment(db)}"
        self.is_empty = self._make()
        """Whether it holds no document, nor a deleted one."""

    def _make(self) -> bool:
        try:
            answer = self._remote.call("GET", self._path)
        except RemoteError as problem:
            if problem.status != 404:
                raise
            self._remote.call("PUT", self._path)
            return True
        info = msgspec.json.decode(answer, type=DatabaseInfo)
        return info.doc_count == 0 and info.doc_del_count == 0

    def write(self, documents: list[Document]) -> list[BulkRow]:
        """Write ``documents``; what became of each, in order.

        The node refuses a whole request for one bad document: then the halves are tried, down to
        the one.
        """
        body = b'{"docs":[' + b",".join(one.text for one in documents) + b"]}"
        try:
            answer = self._remote.call("POST", f"{self._path}/_bulk_docs", body)
        except RemoteError as problem:
            if problem.status not in (400, 413):
                raise
            if len(documents) == 1:
                return [BulkRow("refused", str(problem))]
            half = len(documents) // 2
            return self.write(documents[:half]) + self.write(documents[half:])
        outcomes = msgspec.json.decode(answer, type=list[BulkRow])
        if len(outcomes) != len(documents):
            raise RemoteError("the answer of _bulk_docs does not match the request")
        return outcomes


class Importer:
    """Collects rows into requests, bounded in number and bytes, and tells what failed."""

    def __init__(self, target: Target, bar: "tqdm[None]", batch_documents_max: int) -> None:
        self.tally = Tally()
        self._target = target
        self._is_new = target.is_empty
        self._bar = bar
        self._batch_documents_max = batch_documents_max
        self._rng = SystemRng()
        self._batch: list[Document] = []
        self._batch_bytes = 0

    def take(self, row: Row, id_field: str | None) -> None:
        """Take one row in; sends the rows before it when there is no room."""
        try:
            one = document(row, id_field, self._rng)
        except BadRow as problem:
            self._fail(row.number, str(problem))
            return
        if one.has_rev and self._is_new:
            one = one.without_rev()
        if self._batch_bytes + len(one.text) > BATCH_BYTES_MAX:
            self.flush()
        self._batch.append(one)
        self._batch_bytes += len(one.text)
        if len(self._batch) == self._batch_documents_max:
            self.flush()

    def flush(self) -> None:
        """Send what was collected."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        unknown = []
        for one, outcome in zip(batch, self._target.write(batch), strict=True):
            if outcome.error == "conflict" and one.has_rev:
                unknown.append(one.without_rev())
            else:
                self._count(one, outcome)
        if unknown:  # the revision is not there: perhaps the whole document is not
            for one, outcome in zip(unknown, self._target.write(unknown), strict=True):
                self._count(one, outcome)
        self._bar.update(sum(len(one.text) + 1 for one in batch))

    def _count(self, one: Document, outcome: BulkRow) -> None:
        if outcome.error is None:
            self.tally.written += 1
        elif outcome.error == "conflict":
            self.tally.conflicts += 1
            self._tell(one.number, f"{one.id}: {outcome.reason}")
        else:
            self._fail(one.number, f"{one.id}: {outcome.error}: {outcome.reason}")

    def _fail(self, number: int, reason: str) -> None:
        self.tally.failed += 1
        self._tell(number, reason)

    def _tell(self, number: int, reason: str) -> None:
        told = self.tally.conflicts + self.tally.failed
        if told <= PROBLEMS_SHOWN_MAX:
            self._bar.write(f"row {number}: {reason}", file=sys.stderr)
        elif told == PROBLEMS_SHOWN_MAX + 1:
            self._bar.write("more problems are only counted", file=sys.stderr)


@click.command()
@click.argument("db")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@_place
def export(db: str, file: Path, url: str | None, user: str | None, data: Path) -> None:
    """Write the documents of the database DB to FILE, a JSON object a line; - is stdout.

    Attachments are part of the line. Deleted documents and conflicting revisions are left out. FILE
    gets its name when it is complete.
    """
    with _one_line_errors(), _connected(url, user, data) as remote:
        exporter = Exporter(remote, db)
        with _open_target(file) as out, _export_bar(exporter.count()) as bar:
            for written in exporter.write_to(out):
                bar.update(written)
    click.echo(f"{exporter.written} documents of {db} exported", err=True)
    if exporter.too_large:
        click.echo(
            f"{exporter.too_large} of them are larger than the {ROW_BYTES_MAX // 2**20} MiB that "
            "import takes",
            err=True,
        )


class Exporter:
    """Reads a database page by page; a page's size follows the size of the documents."""

    def __init__(self, remote: Remote, db: str) -> None:
        self.written = 0
        self.too_large = 0
        """Documents whose line `divandb import` would refuse."""
        self._remote = remote
        self._path = f"/{segment(db)}"

    def count(self) -> int:
        """How many documents there are now."""
        answer = self._remote.call("GET", self._path)
        return msgspec.json.decode(answer, type=DatabaseInfo).doc_count

    def write_to(self, out: BinaryIO) -> Iterator[int]:
        """Write all documents; gives how many were written, page by page."""
        last: str | None = None
        limit = 100
        while True:
            try:
                page, size = self._page(last, limit)
            except AnswerTooLarge:
                if limit == PAGE_ROWS_MIN:
                    raise RemoteError(f"the document after {last!r} is too large") from None
                limit = max(PAGE_ROWS_MIN, limit // 8)
                continue
            # The last row of the page before is asked for again: with `skip=1` a document would
            # be left out if that row was deleted in the meantime.
            fresh = [row for row in page if row.id != last]
            for row in fresh:
                self._write(row, out)
            yield len(fresh)
            if len(page) < limit:
                return
            last = page[-1].id
            limit = max(PAGE_ROWS_MIN, min(PAGE_ROWS_MAX, limit * PAGE_BYTES_AIM // max(size, 1)))

    def _page(self, last: str | None, limit: int) -> tuple[list[PageRow], int]:
        path = f"{self._path}/_all_docs?include_docs=true&limit={limit}"
        if last is not None:
            path += f"&startkey={segment(msgspec.json.encode(last).decode())}"
        bytes_max = PAGE_BYTES_MAX if limit > PAGE_ROWS_MIN else LEAST_PAGE_BYTES_MAX
        answer = self._remote.call("GET", path, answer_bytes_max=bytes_max)
        return msgspec.json.decode(answer, type=Page).rows, len(answer)

    def _write(self, row: PageRow, out: BinaryIO) -> None:
        text = bytes(row.doc)
        if text == b"null":  # deleted while the page was made
            return
        if b'"_attachments"' in text and "_attachments" in msgspec.json.decode(text):
            size = self._write_whole(row.id, out)
        else:
            # Outside of strings a line break means nothing, and inside it is written as \n.
            size = out.write(text.replace(b"\n", b" "))
            out.write(b"\n")
        self.written += size > 0
        self.too_large += size > ROW_BYTES_MAX

    def _write_whole(self, name: str, out: BinaryIO) -> int:
        """Write a document with its attachments, in pieces; its size, 0 if it is gone by now."""
        size = 0
        try:
            for chunk in self._remote.chunks(f"{self._path}/{_doc_path(name)}?attachments=true"):
                size += out.write(chunk.replace(b"\n", b" "))
        except RemoteError as problem:
            if problem.status != 404:
                raise
            return 0
        out.write(b"\n")
        return size


def _doc_path(name: str) -> str:
    prefix, slash, rest = name.partition("/")
    if prefix == "_design" and slash:
        return f"_design/{segment(rest)}"
    return segment(name)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (RemoteError, DataDirError) as problem:
        raise click.ClickException(str(problem)) from None
    except msgspec.DecodeError as problem:
        raise click.ClickException(f"the answer is not what CouchDB gives: {problem}") from None
    except BrokenPipeError:
        # Who reads our output has left: nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(1) from None
    except OSError as problem:
        raise click.ClickException(str(problem)) from None


@contextlib.contextmanager
def _connected(url: str | None, user: str | None, data: Path) -> Iterator[Remote]:
    with contextlib.closing(connect(url, user, data)) as remote:
        yield remote


@contextlib.contextmanager
def _open_source(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with open(file, "rb") as source:
        yield source


@contextlib.contextmanager
def _open_target(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = file.with_name(f"{file.name}.part")
    try:
        with open(unfinished, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _import_bar(source: BinaryIO) -> "tqdm[None]":
    status = os.fstat(source.fileno())
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    return tqdm(total=total, unit="B", unit_scale=True, disable=None, file=sys.stderr)


def _export_bar(total: int) -> "tqdm[None]":
    return tqdm(total=total, unit="doc", disable=None, file=sys.stderr)
