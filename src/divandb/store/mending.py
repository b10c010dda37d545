"""Making good what differs, or is damaged, by what another node holds; on the writer's thread.

Nothing is guessed. A document that is sound here is merged with the other's state, which contains
what either has (Rule 2), if both can be states of one history (``merge.reconciled``); if not, it is
left alone, and said. One that is damaged here is replaced, by the state of a node that surely
contains every write that was in it. A register is taken if its stamp is later.
"""

import enum
from collections.abc import Mapping, Sequence

from divandb import event as events
from divandb import merge
from divandb.event import DocumentState, RegisterValue, Unreadable
from divandb.merge import NOTHING
from divandb.store import arrivals, documents, proofs, registers, soundness
from divandb.store.databases import Database
from divandb.store.documents import Row
from divandb.store.ledger import Ledger
from divandb.store.registers import Register
from divandb.vector import Vector, covers


class Outcome(enum.StrEnum):
    """What became of something that differs."""

    MENDED = "mended"
    SAME = "same"
    """It does not differ any more, or the other lacks what is here."""
    DISPUTED = "disputed"
    """One of the two is damaged, and nothing says which."""
    LATER = "later"
    """The other node may lack writes that are in it here."""


def settle(
    ledger: Ledger, name: str, generation: int, messages: Sequence[bytes], theirs: Vector,
    needs: Mapping[str, Vector],
) -> dict[str, Outcome]:  # fmt: skip
    """Take another node's states of a database, read when it contained ``theirs``; key → outcome.

    ``needs`` says of what is damaged here which writes may be in it. What does not fit or is about
    something else is left out.
    """
    found: dict[str, Outcome] = {}
    for data in messages:
        database = ledger.register.get(name)
        if database is None or database.dropped or database.generation != generation:
            break
        try:
            event = events.decode(data)
            payload = events.open_payload(event)
        except Unreadable:
            continue
        if (event.database, event.generation, event.mark) != (name, generation, event.after):
            continue
        if isinstance(payload, DocumentState):
            key = proofs.DOCUMENT + payload.id
            found[key] = _settle_document(ledger, database, payload, theirs, needs.get(key))
        elif isinstance(payload, RegisterValue):
            key = f"{proofs.REGISTER}{payload.kind}/{payload.key}"
            found[key] = _settle_register(ledger, database, payload, theirs)
    ledger.mark_touched()
    return found


def settle_database(ledger: Ledger, messages: Sequence[bytes], now_ms: int) -> None:
    """Take what makes a database what it is elsewhere: the later of both holds."""
    about = (events.CREATED, events.DROPPED)
    arrivals.take(ledger, [one for one in messages if events.decode(one).kind in about], now_ms)


def _settle_document(
    ledger: Ledger, database: Database, arrived: DocumentState, theirs: Vector,
    needs: Vector | None,
) -> Outcome:  # fmt: skip
    if soundness.fault_of_state(arrived) is not None:
        return Outcome.SAME  # damaged there, or on its way: nobody's word against ours
    row, fault = soundness.examined(ledger.connection, database.num, arrived.id)
    if fault is not None:
        if needs is None or not covers(theirs, needs):
            return Outcome.LATER
        documents.discard(ledger, database, row)
        row = Row(arrived.id, 0, 0, "", b"", NOTHING)
    here, there = row.document, arrived.document
    merged = merge.reconciled(here, there)
    if merged is None:
        return Outcome.DISPUTED
    if merged == here and row.place:
        return Outcome.SAME
    ledger.reach(there.context)
    born = arrivals.born_in(here, merged, arrived)
    documents.store(ledger, database, row, merged, born)
    return Outcome.MENDED


def _settle_register(
    ledger: Ledger, database: Database, arrived: RegisterValue, theirs: Vector
) -> Outcome:
    if arrived.kind == registers.LOCAL and not covers(ledger.vector, theirs):
        return Outcome.LATER  # it vouches for writes that may not be here
    value = Register(arrived.value, arrived.stamp, arrived.origin, arrived.oseq)
    here = registers.read(ledger.connection, database.num, arrived.kind, arrived.key)
    if here is not None and registers.order(here) == registers.order(value):
        return Outcome.SAME if here == value else Outcome.DISPUTED
    taken = registers.take(ledger, database, arrived.kind, arrived.key, value)
    return Outcome.MENDED if taken else Outcome.SAME


def might_hold(ledger: Ledger) -> Vector:
    """All writes that may be in what this node holds now."""
    return dict(ledger.reached)
