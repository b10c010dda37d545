"""Accept a write: check it, give it its dot, and store it with its outbox row in one transaction.

Runs on the writer's thread. Everything a command leaves open was fixed by the entry node (Rule 5),
so that carrying out a command twice changes nothing the second time.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from divandb import merge, revtree
from divandb.clock import Clock
from divandb.commands import (
    Confirm,
    CreateDatabase,
    DiscardBlob,
    DropDatabase,
    Edit,
    Graft,
    Purge,
    PutChunk,
    SealBlob,
    SetRegister,
    WriteDocuments,
)
from divandb.errors import Busy, Conflict, DivanError, FileExists, NotFound, PreconditionFailed
from divandb.event import are_hashes
from divandb.revtree import Leaf
from divandb.store import blobs, documents, registers
from divandb.store.databases import Database
from divandb.store.ledger import Changes, Kind, Ledger
from divandb.vector import Dot, Vector

REVS_LIMIT = "revs_limit"
"""The key of the register that says how many revisions of ancestry a database keeps."""

WriteResult = str | DivanError
"""The revision that now is in the tree, or why it is not."""


class Master:
    """Carries out commands inside the writer's transactions."""

    def __init__(self, ledger: Ledger, clock: Clock, revs_limit: int) -> None:
        self._ledger = ledger
        self._default_revs_limit = revs_limit
        self._clock = clock
        self._before: Dot | None = None
        self._handlers: dict[type, Callable[[Any], Any]] = {
            WriteDocuments: self._write_documents,
            Purge: self._purge,
            SetRegister: self._set_register,
            CreateDatabase: self._create_database,
            DropDatabase: self._drop_database,
            Confirm: lambda _: None,
            PutChunk: self._put_chunk,
            SealBlob: self._seal_blob,
            DiscardBlob: self._discard_blob,
        }

    def begin(self) -> None:
        """Start a transaction."""
        self._ledger.begin()

    def execute(self, command: Any) -> Any:
        """Carry out one command; raises ``DivanError`` to refuse it, having changed nothing."""
        self._before = self._ledger.newest
        if callable(command):
            return command(self._ledger)
        return self._handlers[type(command)](command)

    def written(self) -> Vector:
        """The last command's own last write; if it made none, all that is contained."""
        newest = self._ledger.newest
        return dict([newest]) if newest and newest != self._before else dict(self._ledger.vector)

    def commit(self) -> Changes:
        """Make the transaction durable."""
        return self._ledger.commit()

    def rollback(self) -> None:
        """Undo it."""
        self._ledger.rollback()

    def _database(self, name: str, generation: int) -> Database:
        database = self._ledger.register.get(name)
        if database is None or database.dropped or database.generation != generation:
            raise NotFound("Database does not exist.")
        return database

    def _revs_limit(self, database: Database) -> int:
        limit = registers.value(self._ledger.connection, database.num, registers.OPTION, REVS_LIMIT)
        return int(limit) if limit is not None else self._default_revs_limit

    def _write_documents(self, command: WriteDocuments) -> list[WriteResult]:
        database = self._database(command.database, command.generation)
        revs_limit = self._revs_limit(database)
        connection = self._ledger.connection
        there = documents.existing(connection, database.num, [write.id for write in command.writes])
        births = documents.Births(self._ledger, database)
        results: list[WriteResult] = []
        for write in command.writes:
            if write.id not in there and not (isinstance(write, Edit) and write.parent):
                result = self._birth(database, births, write, revs_limit)
            else:
                births.flush()
                row = documents.read_row(connection, database.num, write.id)
                if isinstance(write, Edit):
                    result = self._edit(database, row, write, revs_limit, command)
                else:
                    result = self._graft(database, row, write, revs_limit)
            there.add(write.id)
            results.append(result)
        births.flush()
        return results

    def _birth(
        self, database: Database, births: documents.Births, write: Edit | Graft, revs_limit: int
    ) -> WriteResult:
        """The first leaf of a document: nothing to check, nothing to merge with."""
        missing = self._keep_blobs(write)
        if missing is not None:
            return missing
        dot = self._ledger.next_dot(Kind.DOCUMENT, database.num, write.id)
        pos = 1 if isinstance(write, Edit) else write.pos
        path = (write.rev_hash,) if isinstance(write, Edit) else write.ancestry[:revs_limit]
        leaf = Leaf(pos, path, write.deleted, write.digest, write.attachments, (dot,))
        births.add(write.id, leaf, write.body)
        return leaf.rev

    def _edit(
        self,
        database: Database,
        row: documents.Row,
        write: Edit,
        revs_limit: int,
        command: WriteDocuments,
    ) -> WriteResult:
        shown = row.document.shown()
        parent = revtree.find_leaf(shown, write.parent) if write.parent else None
        pos = revtree.parse_rev(write.parent)[0] + 1 if write.parent else 1
        fits = parent is not None if write.parent else not shown
        if not fits:
            if command.repeat and any(leaf.knows(pos, write.rev_hash) for leaf in shown):
                return f"{pos}-{write.rev_hash}"
            if command.orphans and write.parent and _may_exist(shown, write.parent):
                return self._graft(database, row, _on_unknown_parent(write), revs_limit)
            return Conflict()
        missing = self._keep_blobs(write)
        if missing is not None:
            return missing
        dot = self._ledger.next_dot(Kind.DOCUMENT, database.num, write.id)
        content = Leaf(
            pos, (write.rev_hash,), write.deleted, write.digest, write.attachments, (dot,)
        )
        document = merge.edited(row.document, parent, write.rev_hash, content, dot, revs_limit)
        born = _born(document, content)
        documents.store(self._ledger, database, row, document, [(born, write.body)])
        return content.rev

    def _graft(
        self, database: Database, row: documents.Row, write: Graft, revs_limit: int
    ) -> WriteResult:
        rev = f"{write.pos}-{write.ancestry[0]}"
        if revtree.descendants(row.document.leaves, rev):
            return rev
        missing = self._keep_blobs(write)
        if missing is not None:
            return missing
        dot = self._ledger.next_dot(Kind.DOCUMENT, database.num, write.id)
        leaf = Leaf(
            write.pos, write.ancestry, write.deleted, write.digest, write.attachments, (dot,)
        )
        document = merge.grafted(row.document, leaf, dot, revs_limit)
        born = _born(document, leaf)
        documents.store(self._ledger, database, row, document, [(born, write.body)])
        return rev

    def _keep_blobs(self, write: Edit | Graft) -> DivanError | None:
        """Store what travels with the document; everything else must be here already, or be what
        another revision refers to: then it is on its way.
        """
        if not write.attachments:
            return None
        now_ms = self._clock.wall_ms()
        for name, data in write.blobs:
            blobs.put_whole(self._ledger.connection, name, data, now_ms)
        for att in write.attachments:
            if not blobs.is_known(self._ledger.connection, att.blob):
                return PreconditionFailed(f"The bytes of attachment {att.name} are not here.")
        return None

    def _purge(self, command: Purge) -> dict[str, list[str]]:
        database = self._database(command.database, command.generation)
        return {
            doc_id: self._purge_document(database, doc_id, revs)
            for doc_id, revs in command.documents.items()
        }

    def _purge_document(self, database: Database, doc_id: str, revs: list[str]) -> list[str]:
        row = documents.read_row(self._ledger.connection, database.num, doc_id)
        gone = [leaf.rev for leaf in row.document.shown() if leaf.rev in set(revs)]
        if not gone:
            return []
        dot = self._ledger.next_dot(Kind.DOCUMENT, database.num, doc_id)
        document = merge.purged(row.document, gone, dot)
        documents.store(self._ledger, database, row, document, purging=True)
        if not document.leaves:
            documents.drop_old_bodies(self._ledger, database, doc_id)
        database.purge_seq += 1
        return gone

    def _set_register(self, command: SetRegister) -> registers.Register:
        database = None
        if command.database is not None:
            database = self._database(command.database, command.generation)
        return registers.write(
            self._ledger, database, command.kind, command.key, command.value, command.stamp
        )

    def _create_database(self, command: CreateDatabase) -> Database:
        known = self._ledger.register.get(command.name)
        if known is not None and known.generation >= command.generation:
            same = known.generation == command.generation and not known.dropped
            if command.repeat and same:
                return msgspec.structs.replace(known)
            raise FileExists("The database could not be created, the file already exists.")
        self._ledger.next_dot(Kind.CREATED, self._ledger.next_num(), command.name)
        database = self._ledger.add_generation(
            command.name, command.generation, self._clock.wall_ms(), command.options
        )
        if command.security is not None:
            stamp = self._ledger.stamp()
            registers.write(self._ledger, database, registers.SECURITY, "", command.security, stamp)
        return msgspec.structs.replace(database)

    def _drop_database(self, command: DropDatabase) -> None:
        known = self._ledger.register.get(command.name)
        done = known is not None and (known.generation, known.dropped) >= (command.generation, True)
        if command.repeat and done:
            return
        database = self._database(command.name, command.generation)
        self._ledger.next_dot(Kind.DROPPED, database.num, command.name)
        self._ledger.drop_database(database)

    def _put_chunk(self, command: PutChunk) -> None:
        connection, now_ms = self._ledger.connection, self._clock.wall_ms()
        num = blobs.receiving(connection, command.upload)
        if num is None:
            num = blobs.receive(connection, command.upload, now_ms)
        blobs.put_chunk(connection, num, command.index, command.data)

    def _seal_blob(self, command: SealBlob) -> None:
        connection, now_ms = self._ledger.connection, self._clock.wall_ms()
        num = blobs.receiving(connection, command.upload)
        if num is not None and blobs.count_chunks(connection, num) == command.chunks:
            blobs.seal(connection, num, command.name, command.length, now_ms)
        elif not blobs.touch(connection, command.name, now_ms):
            raise Busy("The attachment did not arrive whole: send it again.")

    def _discard_blob(self, command: DiscardBlob) -> None:
        num = blobs.receiving(self._ledger.connection, command.upload)
        if num is not None:
            blobs.discard(self._ledger.connection, num)


def _may_exist(shown: list[Leaf], rev: str) -> bool:
    """Is it a revision that is not known here and may be elsewhere?"""
    pos, rev_hash = revtree.parse_rev(rev)
    return are_hashes((rev_hash,)) and not any(leaf.knows(pos, rev_hash) for leaf in shown)


def _on_unknown_parent(write: Edit) -> Graft:
    """The edit with what it says of its parent: its place is taken when the parent arrives."""
    pos, parent_hash = revtree.parse_rev(write.parent or "")
    path = (write.rev_hash, parent_hash)
    return Graft(
        write.id, pos + 1, path, write.deleted, write.digest, write.body, write.attachments,
        write.blobs,
    )  # fmt: skip


def _born(document: merge.Document, content: Leaf) -> Leaf:
    """The leaf of the new state that is this content; ``content`` itself if the tree hides it.

    By content as well: a revision may stand there already with another one (``new_edits=false``).
    """
    key = (content.rev, content.digest)
    return next((leaf for leaf in document.leaves if (leaf.rev, leaf.digest) == key), content)
