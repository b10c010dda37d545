"""Digests: one number a database generation, the same wherever the same is held.

A digest is the exclusive or of one 128-bit number (BLAKE2b) for each document and each register, so
it does not depend on the order in which they came, and a write takes its old number out and puts
its new one in. It is a check against faults, not against people who look for collisions.

What has a number:

* A document: its id and, for each leaf, revision, content digest and deletion. Not ancestry, dots
  or context. A document without leaves (purged) has none.
* A register of the database (`_security`, options, `_local`): kind, key, value and stamp. A deleted
  one too: its stamp decides about writes that come late, and no node forgets it while the database
  lives. The dot is left out: of writes with one stamp it only says which value won.

A `_local` document that still waits to be shown is not in it, and neither are the node's own
registers. A dropped generation has the digest of an empty one: what is left of its rows depends on
when the drop came.

Both states are functions of the writes that are in them. So nodes with equal vectors have equal
digests as soon as nothing is on its way there: no write applied ahead of the vector, nothing
waiting.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from divandb.merge import Document
from divandb.revtree import Leaf
from divandb.store.databases import EMPTY_DIGEST, Database
from divandb.store.file import Connection

DIGEST_BYTES = len(EMPTY_DIGEST)
PIECE_ROWS_MAX = 128
PIECE_BYTES_MAX = 1024 * 1024
"""A piece of a recomputation ends with the row that passes either."""

_encode = msgspec.msgpack.Encoder().encode
_decode_document = msgspec.msgpack.Decoder(Document).decode

_DOCUMENTS = """
SELECT id, tree, length(body) + length(tree) FROM doc WHERE place > ? AND place < ?
"""
_REGISTERS = "SELECT kind, key, value, stamp FROM register WHERE db = ?"


def of_document(doc_id: str, leaves: Iterable[Leaf]) -> int:
    """A document's number; 0 if it has no leaves."""
    content = [(leaf.rev, leaf.digest, leaf.deleted) for leaf in leaves]
    content.sort()
    return _number((doc_id, content)) if content else 0


def of_register(kind: str, key: str, value: bytes | None, stamp: int) -> int:
    """A register's number; ``value`` is ``None`` where it was deleted."""
    return _number((kind, key, value, stamp))


def _number(content: object) -> int:
    return int.from_bytes(blake2b(_encode(content), digest_size=DIGEST_BYTES).digest(), "big")


def combined(digest: bytes, *numbers: int) -> bytes:
    """``digest`` with the numbers that were not in it put in, and those that were taken out."""
    total = int.from_bytes(digest, "big")
    for number in numbers:
        total ^= number
    return total.to_bytes(DIGEST_BYTES, "big")


def as_bytes(number: int) -> bytes:
    """A number, or several by exclusive or, as a digest is kept."""
    return number.to_bytes(DIGEST_BYTES, "big")


def shown(database: Database, digest: bytes) -> str:
    """A digest as 32 hex digits for people and other nodes: name, generation and whether the
    database was dropped are in it.
    """
    content = (database.name, database.generation, database.dropped, digest)
    return blake2b(_encode(content), digest_size=DIGEST_BYTES).hexdigest()


def recomputed(connection: Connection, database: Database) -> bytes:
    """What ``database.digest`` must be, by a scan of all its rows in one snapshot."""
    with connection:
        numbers = list(pieces(connection, database))
    return combined(EMPTY_DIGEST, *numbers)


def pieces(connection: Connection, database: Database) -> Iterator[int]:
    """The numbers that make up a recomputed digest, each from a bounded read.

    They belong together only if a transaction of the caller's holds one snapshot.
    """
    if database.dropped:
        return
    gathered = rows = size = 0
    for number, size_bytes in _numbers(connection, database):
        gathered ^= number
        rows += 1
        size += size_bytes
        if rows >= PIECE_ROWS_MAX or size >= PIECE_BYTES_MAX:
            yield gathered
            gathered = rows = size = 0
    yield gathered


def _numbers(connection: Connection, database: Database) -> Iterator[tuple[int, int]]:
    """(number, bytes read) of each document and register."""
    documents: Any = connection.execute(_DOCUMENTS, (database.place, database.place_end))
    for doc_id, tree, size_bytes in documents:
        yield of_document(doc_id, _decode_document(tree).leaves), size_bytes
    registers: Any = connection.execute(_REGISTERS, (database.num,))
    for kind, key, value, stamp in registers:
        yield of_register(kind, key, value, stamp), len(value or b"")
