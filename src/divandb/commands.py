"""What an entry node asks of a master: fixed beforehand, so that twice is once (Rule 5).

Whoever takes a request chooses everything that a master would otherwise choose (ids, parents, new
revisions, stamps, generations) before it is first sent on; a master checks and stamps, and chooses
nothing.
"""

import msgspec

from divandb.revtree import Attachment

Blob = tuple[bytes, bytes]
"""(name, bytes) of an attachment small enough to travel with its document."""


class Edit(msgspec.Struct, frozen=True, tag=True):
    """A new child of ``parent`` (a shown leaf, or ``None`` for a new document)."""

    id: str
    parent: str | None
    rev_hash: str
    deleted: bool
    digest: bytes
    body: bytes
    attachments: tuple[Attachment, ...] = ()
    blobs: tuple[Blob, ...] = ()


class Graft(msgspec.Struct, frozen=True, tag=True):
    """A revision made elsewhere, with its ancestry (``new_edits=false``)."""

    id: str
    pos: int
    ancestry: tuple[str, ...]
    deleted: bool
    digest: bytes
    body: bytes
    attachments: tuple[Attachment, ...] = ()
    blobs: tuple[Blob, ...] = ()


class WriteDocuments(msgspec.Struct, frozen=True, tag=True):
    """Edits and grafts of one database; the result is a revision or an error for each, in order."""

    database: str
    generation: int
    writes: list[Edit | Graft]
    repeat: bool = False
    """Not the first attempt: a revision found in the history is answered as it was the first time.
    """


class Purge(msgspec.Struct, frozen=True, tag=True):
    """Remove leaf revisions; the result is {id: revisions purged}."""

    database: str
    generation: int
    documents: dict[str, list[str]]


class SetRegister(msgspec.Struct, frozen=True, tag=True):
    """Set (or with ``None`` delete) a last-writer-wins value; ``database`` None: the node's."""

    database: str | None
    generation: int
    kind: str
    key: str
    value: bytes | None
    stamp: int


class CreateDatabase(msgspec.Struct, frozen=True, tag=True):
    """Make a generation of a database; ``file_exists`` if that or a later one is there."""

    name: str
    generation: int
    options: str
    security: bytes | None = None
    repeat: bool = False


class DropDatabase(msgspec.Struct, frozen=True, tag=True):
    """Drop exactly this generation."""

    name: str
    generation: int
    repeat: bool = False


class OpenBlob(msgspec.Struct, frozen=True, tag=True):
    """Begin to receive a large attachment; the result is its number."""


class PutChunk(msgspec.Struct, frozen=True, tag=True):
    """The next chunk of it."""

    num: int
    index: int
    data: bytes


class SealBlob(msgspec.Struct, frozen=True, tag=True):
    """All chunks are there: the blob's name and length."""

    num: int
    name: bytes
    length: int


class DiscardBlob(msgspec.Struct, frozen=True, tag=True):
    """It will not be finished."""

    num: int


Command = (
    WriteDocuments | Purge | SetRegister | CreateDatabase | DropDatabase
    | OpenBlob | PutChunk | SealBlob | DiscardBlob
)  # fmt: skip
