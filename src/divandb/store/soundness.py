"""Is a document's row what a write has put there? What can be seen of it without any other node.

A leaf carries the digest of its content, and a row says twice which revision wins. So bytes that a
disk or a hand has changed show nearly always: the tree cannot be read or does not fit itself, the
row does not fit its tree, a body is not what its digest says, or is not there. What does not show:
a change of ancestry or context that still makes sense, and one that keeps all of this in step.
"""

from typing import Any

import msgspec

from divandb import document
from divandb import event as events
from divandb.event import DocumentState
from divandb.merge import NOTHING, Document
from divandb.revtree import Leaf
from divandb.store import documents
from divandb.store.documents import Row
from divandb.store.file import Connection

UNREADABLE = "its tree cannot be read"
MISFIT_TREE = "its tree does not fit itself"
MISFIT_ROW = "its row does not fit its tree"
NO_BODY = "the body of a leaf is not here"
WRONG_BODY = "a body is not what its digest says"

_ROW = "SELECT place, id, flags, rev, body, tree FROM doc WHERE db = ? AND id = ?"
_decode = msgspec.msgpack.Decoder(Document).decode


def read_tree(tree: bytes) -> Document | None:
    """The leaves and the context; ``None`` if nothing can be made of them."""
    try:
        found = _decode(tree)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    shaped = all(leaf.ancestry and isinstance(leaf.ancestry[0], str) for leaf in found.leaves)
    return found if shaped else None


def row_of(columns: Any) -> tuple[Row, str | None]:
    """A row (place, id, flags, rev, body, tree), and what is wrong with it by itself.

    A tree that cannot be read counts as nothing.
    """
    place, doc_id, flags, rev, body, tree = columns
    found = read_tree(tree)
    row = Row(doc_id, place, flags, rev, body, found or NOTHING)
    return row, UNREADABLE if found is None else _fault_of_row(row)


def examined(connection: Connection, num: int, doc_id: str) -> tuple[Row, str | None]:
    """A document's row, and what is wrong with it or with the bodies that belong to it; an empty
    one is sound.
    """
    columns: Any = connection.execute(_ROW, (num, doc_id)).fetchone()
    if columns is None:
        return Row(doc_id, 0, 0, "", b"", NOTHING), None
    row, fault = row_of(columns)
    return row, fault or fault_of_bodies(connection, num, row)


def fault_of_bodies(connection: Connection, num: int, row: Row) -> str | None:
    """What is wrong with the bodies of a row's leaves."""
    winner = row.winner
    for leaf in row.document.leaves:
        if winner is not None and (leaf.rev, leaf.digest) == (winner.rev, winner.digest):
            body = row.body
        else:
            try:
                body = documents.read_leaf_body(connection, num, row.id, leaf)
            except LookupError:
                return NO_BODY
        if not _is_content(row.id, leaf, body):
            return WRONG_BODY
    return None


def fault_of_state(state: DocumentState) -> str | None:
    """What is wrong with a state that came from elsewhere, beside what any event is checked for."""
    sound = all(
        _is_content(state.id, leaf, body)
        for leaf, body in zip(state.document.leaves, state.bodies, strict=True)
    )
    return None if sound else WRONG_BODY


def _fault_of_row(row: Row) -> str | None:
    found = row.document
    if not all(events.is_sound_leaf(leaf, found.context) for leaf in found.leaves):
        return MISFIT_TREE
    shown = found.shown()
    rev = shown[0].rev if shown else ""
    return None if (row.flags, row.rev) == (documents.flags_of(shown), rev) else MISFIT_ROW


def _is_content(doc_id: str, leaf: Leaf, body: bytes) -> bool:
    members = document.members_in(body, doc_id, leaf.rev, leaf.deleted, leaf.attachments)
    if members is None:
        return False
    return document.content_digest(members, leaf.deleted, leaf.attachments) == leaf.digest
