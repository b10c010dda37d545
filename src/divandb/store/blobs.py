"""Attachments' bytes: stored once by the SHA-256 of what is stored, in chunks of one size.

A large one is received chunk by chunk into a blob without a name and *sealed* when its name is
known; what is never sealed, or never referred to, the upkeep collects.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec

from divandb.event import CHUNK_BYTES, Chunk
from divandb.store.file import Connection

CHUNK_BITS = 24
SUM_CHUNKS_MAX = 16
"""Chunks that are read again with each one that comes, to make up for a sum that was forgotten."""
SUMS_MAX = 256
"""Blobs on their way here whose sums are remembered."""

_USAGE = """
SELECT num, name, touched_ms, EXISTS (SELECT 1 FROM blob_use WHERE blob = name)
FROM blob WHERE num > ? ORDER BY num LIMIT ?
"""
# Revisions of a dropped database need nothing any more.
_MISSING = """
SELECT DISTINCT blob FROM blob_use
WHERE NOT EXISTS (SELECT 1 FROM blob WHERE name = blob_use.blob)
AND EXISTS (SELECT 1 FROM database WHERE num = db AND NOT dropped)
LIMIT ?
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


def receive(connection: Connection, upload: bytes, now_ms: int) -> int:
    """Begin to receive a client's blob, which goes by ``upload`` until it is sealed; its number."""
    num = open_blob(connection, now_ms)
    connection.execute("UPDATE blob SET upload = ? WHERE num = ?", (upload, num))
    return num


def receiving(connection: Connection, upload: bytes) -> int | None:
    """The number of the blob that is being received as ``upload``."""
    row: Any = connection.execute("SELECT num FROM blob WHERE upload = ?", (upload,)).fetchone()
    return row[0] if row else None


def put_chunk(connection: Connection, num: int, index: int, data: bytes) -> None:
    """Store one chunk, once; all but the last are ``CHUNK_BYTES`` long."""
    place = num << CHUNK_BITS | index
    connection.execute("INSERT OR IGNORE INTO blob_chunk VALUES (?, ?)", (place, data))


def count_chunks(connection: Connection, num: int) -> int:
    """How many chunks of it are here."""
    low, high = num << CHUNK_BITS, (num + 1) << CHUNK_BITS
    row: Any = connection.execute(
        "SELECT count(*) FROM blob_chunk WHERE place >= ? AND place < ?", (low, high)
    ).fetchone()
    count: int = row[0]
    return count


def seal(connection: Connection, num: int, name: bytes, length: int, now_ms: int) -> None:
    """Give a received blob its name; one that is already there stays, and the copy is dropped."""
    if touch(connection, name, now_ms):
        discard(connection, num)
        return
    connection.execute(
        "UPDATE blob SET name = ?, length = ?, touched_ms = ?, upload = NULL WHERE num = ?",
        (name, length, now_ms, num),
    )


class Sums:
    """SHA-256 of blobs on their way here, each as far as its chunks lie without a gap.

    Kept in memory alone: what is forgotten is read again.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, Any]] = {}

    def count(self, num: int) -> int:
        """How many chunks are in the sum."""
        return self._sums[num][0] if num in self._sums else 0

    def advance(self, connection: Connection, num: int, upto: int) -> int:
        """Add the next chunks, up to that number of them; how many are in it then."""
        count, sha = self._sums.pop(num, (0, None))
        sha = sha or sha256()
        while count < upto:
            row: Any = connection.execute(
                "SELECT data FROM blob_chunk WHERE place = ?", (num << CHUNK_BITS | count,)
            ).fetchone()
            if row is None:
                break
            sha.update(row[0])
            count += 1
        while len(self._sums) >= SUMS_MAX:
            self._sums.pop(next(iter(self._sums)))
        self._sums[num] = (count, sha)
        return count

    def finish(self, connection: Connection, num: int, chunks: int) -> bytes:
        """The sum over all chunks, which must be there; it is forgotten."""
        self.advance(connection, num, chunks)
        digest: bytes = self._sums.pop(num)[1].digest()
        return digest


def take_chunk(connection: Connection, sums: Sums, chunk: Chunk, now_ms: int) -> bool:
    """Store a chunk of another node's blob, in any order and twice; the last to come seals it.

    ``False``: it made the blob whole, and that is not what its name says: all of it is forgotten,
    so that a good copy can come. Chunks that name different lengths are of different copies.

    The sum is taken as the chunks come, 0.2 ms each. Only what came before the first chunk, or
    before a restart, has to be read again, ``SUM_CHUNKS_MAX`` with each chunk that comes, and what
    is still left when the last is there (1 ms a MiB) at once: a blob without a name would wait for
    an event that may not come.
    """
    if touch(connection, chunk.blob, now_ms):
        return True
    num = _copy_of(connection, chunk, now_ms)
    put_chunk(connection, num, chunk.index, chunk.data)
    chunks = max(-(-chunk.length // CHUNK_BYTES), 1)
    summed = sums.advance(connection, num, min(sums.count(num) + SUM_CHUNKS_MAX, chunks))
    if summed < chunks and not _is_whole(connection, num, summed, chunks):
        return True
    if sums.finish(connection, num, chunks) != chunk.blob:
        give_up(connection, num)
        return False
    connection.execute("UPDATE blob SET arriving = NULL WHERE num = ?", (num,))
    seal(connection, num, chunk.blob, chunk.length, now_ms)
    return True


def _copy_of(connection: Connection, chunk: Chunk, now_ms: int) -> int:
    """The number of the blob that the chunk is a piece of; it is made if this is the first."""
    copy = chunk.blob + chunk.length.to_bytes(8, "big")
    row: Any = connection.execute("SELECT num FROM blob WHERE arriving = ?", (copy,)).fetchone()
    if row:
        found: int = row[0]
        return found
    num = open_blob(connection, now_ms)
    connection.execute("UPDATE blob SET arriving = ? WHERE num = ?", (copy, num))
    return num


def _is_whole(connection: Connection, num: int, summed: int, chunks: int) -> bool:
    """Is nothing missing of what lies behind the sum? The next one decides, nearly always."""
    place = num << CHUNK_BITS | summed
    following = "SELECT 1 FROM blob_chunk WHERE place = ?"
    if not connection.execute(following, (place,)).fetchall():
        return False
    return count_chunks(connection, num) == chunks


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
    sql = "UPDATE blob SET name = NULL, arriving = NULL, upload = NULL WHERE num = ?"
    connection.execute(sql, (num,))


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


def chunk(connection: Connection, name: bytes, index: int) -> Chunk | None:
    """One chunk of a blob; ``None`` if it is not whole here, or has no such chunk."""
    found = find(connection, name)
    if found is None:
        return None
    num, length = found
    if not length and not index:
        return Chunk(name, 0, 0, b"")
    if index * CHUNK_BYTES >= length:
        return None
    row: Any = connection.execute(
        "SELECT data FROM blob_chunk WHERE place = ?", (num << CHUNK_BITS | index,)
    ).fetchone()
    return Chunk(name, index, length, row[0]) if row else None


def is_known(connection: Connection, name: bytes) -> bool:
    """Is the blob here, or does a revision refer to it already?"""
    used = "SELECT 1 FROM blob_use WHERE blob = ? LIMIT 1"
    return find(connection, name) is not None or bool(connection.execute(used, (name,)).fetchall())


def missing(connection: Connection, limit: int) -> list[bytes]:
    """Blobs that revisions refer to and that are not here, up to ``limit`` of them.

    Looks at every use: 1 s for a million.
    """
    rows: Any = connection.execute(_MISSING, (limit,))
    return [name for (name,) in rows]


def copies(connection: Connection, name: bytes) -> dict[int, set[int]]:
    """What has come of a blob that is on its way here from other nodes: by the length that its
    chunks name, the numbers of those that are here.
    """
    rows: Any = connection.execute(
        "SELECT num, arriving FROM blob WHERE arriving > ? AND arriving < ?",
        (name, name + b"\xff" * 9),
    ).fetchall()
    found: dict[int, set[int]] = {}
    for num, copy in rows:
        low, high = num << CHUNK_BITS, (num + 1) << CHUNK_BITS
        places: Any = connection.execute(
            "SELECT place FROM blob_chunk WHERE place >= ? AND place < ?", (low, high)
        )
        found[int.from_bytes(copy[len(name) :], "big")] = {place - low for (place,) in places}
    return found


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
