"""Attachments' bytes: stored once by the SHA-256 of what is stored, in chunks of one size.

A large one is received chunk by chunk into a blob without a name and *sealed* when its name is
known; what is never sealed, or never referred to, the upkeep collects.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from divandb.event import CHUNK_BYTES, Chunk
from divandb.store.file import Connection

CHUNK_BITS = 24

_USAGE = """
SELECT num, name, touched_ms, EXISTS (SELECT 1 FROM blob_use WHERE blob = name)
FROM blob WHERE num > ? ORDER BY num LIMIT ?
"""


class Usage(msgspec.Struct, frozen=True):
    """A blob, received (with a name) or being received, and whether a revision refers to it."""

    num: int
    name: bytes | None
    touched_ms: int
    used: bool


def open_blob(connection: Connection, now_ms: int) -> int:
    """Begin to receive a blob; returns its number."""
    connection.execute("INSERT INTO blob (name, length, touched_ms) VALUES (NULL, 0, ?)", (now_ms,))
    return connection.last_insert_rowid()


def put_chunk(connection: Connection, num: int, index: int, data: bytes) -> None:
    """Store one chunk; all but the last are ``CHUNK_BYTES`` long."""
    connection.execute("INSERT INTO blob_chunk VALUES (?, ?)", (num << CHUNK_BITS | index, data))


def seal(connection: Connection, num: int, name: bytes, length: int, now_ms: int) -> None:
    """Give a received blob its name; one that is already there stays, and the copy is dropped."""
    if touch(connection, name, now_ms):
        discard(connection, num)
        return
    connection.execute(
        "UPDATE blob SET name = ?, length = ?, touched_ms = ? WHERE num = ?",
        (name, length, now_ms, num),
    )


def take_chunk(
    connection: Connection, name: bytes, index: int, length: int, data: bytes, now_ms: int
) -> None:
    """Store a chunk of another node's blob, in any order and twice; the last to come seals it."""
    if touch(connection, name, now_ms):
        return
    row: Any = connection.execute("SELECT num FROM blob WHERE arriving = ?", (name,)).fetchone()
    num: int = row[0] if row else open_blob(connection, now_ms)
    if row is None:
        connection.execute("UPDATE blob SET arriving = ? WHERE num = ?", (name, num))
    place = num << CHUNK_BITS
    connection.execute("INSERT OR IGNORE INTO blob_chunk VALUES (?, ?)", (place | index, data))
    held: Any = connection.execute(
        "SELECT count(*) FROM blob_chunk WHERE place >= ? AND place < ?",
        (place, (num + 1) << CHUNK_BITS),
    ).fetchone()
    if held[0] == max(-(-length // CHUNK_BYTES), 1):
        connection.execute("UPDATE blob SET arriving = NULL WHERE num = ?", (num,))
        seal(connection, num, name, length, now_ms)


def discard(connection: Connection, num: int) -> None:
    """Forget a blob that was never sealed, and its chunks."""
    connection.execute("DELETE FROM blob WHERE num = ? AND name IS NULL", (num,))
    if connection.changes():
        low, high = num << CHUNK_BITS, (num + 1) << CHUNK_BITS
        connection.execute("DELETE FROM blob_chunk WHERE place >= ? AND place < ?", (low, high))


def is_nameless(connection: Connection, num: int) -> bool:
    """Is it a blob that nobody can find, and that is not on its way here?"""
    sql = "SELECT 1 FROM blob WHERE num = ? AND name IS NULL AND arriving IS NULL"
    return bool(connection.execute(sql, (num,)).fetchall())


def discard_chunks(connection: Connection, num: int, count: int) -> int:
    """Forget up to ``count`` chunks of a blob; how many it were."""
    low, high = num << CHUNK_BITS, (num + 1) << CHUNK_BITS
    rows: Any = connection.execute(
        "SELECT place FROM blob_chunk WHERE place >= ? AND place < ? LIMIT ?", (low, high, count)
    ).fetchall()
    connection.executemany("DELETE FROM blob_chunk WHERE place = ?", rows)
    return len(rows)


def give_up(connection: Connection, num: int) -> None:
    """Nobody is to find the blob any more; were its chunks not discarded, the next start would do
    it.
    """
    connection.execute("UPDATE blob SET name = NULL, arriving = NULL WHERE num = ?", (num,))


def usage(connection: Connection, after: int, limit: int) -> list[Usage]:
    """The next blobs by number, with what decides whether they are kept."""
    rows: Any = connection.execute(_USAGE, (after, limit))
    return [Usage(num, name, touched_ms, bool(used)) for num, name, touched_ms, used in rows]


def last_chunk(connection: Connection, num: int) -> int:
    """The place of the last chunk that came; 0 if none did."""
    low, high = num << CHUNK_BITS, (num + 1) << CHUNK_BITS
    row: Any = connection.execute(
        "SELECT coalesce(max(place), 0) FROM blob_chunk WHERE place >= ? AND place < ?", (low, high)
    ).fetchone()
    place: int = row[0]
    return place


def chunks(connection: Connection, name: bytes) -> Iterator[Chunk]:
    """The blob as other nodes get it, one chunk at least; nothing if it is not whole here."""
    found = find(connection, name)
    if found is None:
        return
    try:
        for index, data in enumerate(read(connection, name) if found[1] else [b""]):
            yield Chunk(name, index, found[1], data)
    except LookupError:
        return


def touch(connection: Connection, name: bytes, now_ms: int) -> bool:
    """Keep the blob from being collected for a while; was it there?"""
    connection.execute("UPDATE blob SET touched_ms = ? WHERE name = ?", (now_ms, name))
    return connection.changes() > 0


def put_whole(connection: Connection, name: bytes, data: bytes, now_ms: int) -> None:
    """Store a blob that is in memory."""
    if touch(connection, name, now_ms):
        return
    num = open_blob(connection, now_ms)
    for index, start in enumerate(range(0, len(data), CHUNK_BYTES)):
        put_chunk(connection, num, index, data[start : start + CHUNK_BYTES])
    seal(connection, num, name, len(data), now_ms)


def find(connection: Connection, name: bytes) -> tuple[int, int] | None:
    """(number, length in bytes) of a blob."""
    cursor: Any = connection.execute("SELECT num, length FROM blob WHERE name = ?", (name,))
    row: tuple[int, int] | None = cursor.fetchone()
    return row


def read(
    connection: Connection, name: bytes, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The blob's bytes from ``start`` to before ``end``, at most a chunk at a time.

    Each piece is a read of its own, so that a slow reader holds no transaction open.
    Raises ``LookupError`` if the blob, or a chunk of it, is not in the file.
    """
    found = find(connection, name)
    if found is None:
        raise LookupError(f"blob {name.hex()} is not in the file")
    num, length = found
    position, end = start, length if end is None else min(end, length)
    while position < end:
        index, skip = divmod(position, CHUNK_BYTES)
        row: Any = connection.execute(
            "SELECT data FROM blob_chunk WHERE place = ?", (num << CHUNK_BITS | index,)
        ).fetchone()
        if row is None:
            raise LookupError(f"chunk {index} of blob {name.hex()} is not in the file")
        piece = row[0][skip : skip + end - position]
        position += len(piece)
        yield piece
