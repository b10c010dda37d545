"""What an entry node asks of a master: fixed beforehand, so that twice is once (Rule 5).

Whoever takes a request chooses everything that a master would otherwise choose (ids, parents, new
revisions, stamps, generations) before it is first sent on; a master checks and stamps, and chooses
nothing.
"""

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from divandb.revtree import Attachment
from divandb.vector import Vector

Blob = tuple[bytes, bytes]
"""(name, bytes) of an attachment small enough to travel with its document."""


class Concern(enum.StrEnum):
    """What "approved" means to a client: see ``docs/guarantees.md``."""

    LOCAL = "local"
    BOARD = "board"
    VISIBLE = "visible"


class Edit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A new child of ``parent`` (a shown leaf, or ``None`` for a new document)."""

    id: str
    parent: str | None
    rev_hash: str
    deleted: bool
    digest: bytes
    body: bytes
    attachments: tuple[Attachment, ...] = ()
    blobs: tuple[Blob, ...] = ()


class Graft(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A revision made elsewhere, with its ancestry (``new_edits=false``)."""

    id: str
    pos: int
    ancestry: tuple[str, ...]
    deleted: bool
    digest: bytes
    body: bytes
    attachments: tuple[Attachment, ...] = ()
    blobs: tuple[Blob, ...] = ()


class WriteDocuments(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Edits and grafts of one database; the result is a revision or an error for each, in order."""

    database: str
    generation: int
    writes: list[Edit | Graft]
    repeat: bool = False
    """Not the first attempt: a revision found in the history is answered as it was the first time.
    """
    orphans: bool = False
    """Take a child whose parent is not known, as ``new_edits=false`` would: the session wrote the
    parent at a node that cannot be asked.
    """
    user: tuple[str | None, tuple[str, ...]] = (None, ())
    """Name and roles of who writes."""


class Purge(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Remove leaf revisions; the result is {id: revisions purged}."""

    database: str
    generation: int
    documents: dict[str, list[str]]


class SetRegister(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Set (or with ``None`` delete) a last-writer-wins value; ``database`` None: the node's."""

    database: str | None
    generation: int
    kind: str
    key: str
    value: bytes | None
    stamp: int


class CreateDatabase(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Make a generation of a database; ``file_exists`` if that or a later one is there."""

    name: str
    generation: int
    options: str
    security: bytes | None = None
    repeat: bool = False


class DropDatabase(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Drop exactly this generation."""

    name: str
    generation: int
    repeat: bool = False


class Confirm(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Change nothing: answered when what the session wrote is safe."""


class PutChunk(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A piece of a large attachment that is being received, under a random ``upload`` of 16 bytes
    until its name is known.
    """

    upload: bytes
    index: int
    data: bytes


class SealBlob(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All ``chunks`` pieces were sent: the blob's name and length."""

    upload: bytes
    name: bytes
    length: int
    chunks: int


class DiscardBlob(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """It will not be finished."""

    upload: bytes


Command = (
    WriteDocuments | Purge | SetRegister | CreateDatabase | DropDatabase
    | Confirm | PutChunk | SealBlob | DiscardBlob
)  # fmt: skip


class Job(msgspec.Struct):
    """A command that waits for its commit; ``done`` gets it back with its result or error."""

    command: Any
    size_bytes: int
    done: Callable[["Job"], None]
    result: Any = None
    needs: Vector = {}
    """What the session wrote before, perhaps elsewhere."""
    concern: Concern = Concern.LOCAL
    """What the client waits for."""
    written: Vector = {}
    """What holds the writes of this command, once it is carried out."""
    slot: str = ""
    """Whose master carried it out."""
    reached: Concern = Concern.LOCAL
    visible: tuple[int, int] = (0, 0)
    """Applied on so many nodes of so many, as far as ``VISIBLE`` was asked for."""
    doubtful: bool = False
    """Was there an attempt that nobody answered?"""
    is_inner: bool = False
    """Is ``done`` to be called on the writer's thread, where it came from?"""
