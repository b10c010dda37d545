"""What nodes ask each other to see whether they hold the same, and what follows from the answers.

    POST /_divan/proof    a question → its answer, both MessagePack

    Everything   all databases: one number for all; if it differs, name, generation and digest of
                 each
    Whole        one database, without what either may have later: exact, whatever is written
                 meanwhile (``store.proofs``)
    Stretch      where that differs: documents and registers in one range of keys
    States       those that differ, whole
    Doubt        the digest that you keep may be wrong: count your rows

The functions below compare: data in, data out.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from hashlib import blake2b
from operator import xor

import msgspec

from divandb.cluster import messages
from divandb.store.proofs import Claim, Held
from divandb.vector import Vector, covers

PROOF = f"{messages.PREFIX}/proof"


class Everything(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Do you hold what I hold? ``after`` is the name behind which claims are asked for."""

    total: bytes
    after: str = ""


class EverythingAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What was contained when the claims were read; they stop where ``more`` says so."""

    vector: dict[int, int]
    same: bool
    claims: list[Claim] = []
    more: bool = False


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One document or register; ``beyond``: the asker may lack a write that is in it."""

    key: str
    number: bytes
    beyond: bool = False


class Whole(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What is your digest, what have you that I may lack, and how have you these?"""

    name: str
    generation: int
    vector: dict[int, int]
    keys: list[str]


class WholeAnswer(msgspec.Struct, frozen=True, array_like=True):
    """``digest`` is ``None`` where there is no such database, or too much has changed."""

    vector: dict[int, int]
    digest: bytes | None = None
    changed: list[Entry] = []
    held: list[Entry] = []


class Stretch(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What do you hold in (after, upto]? ``total`` is over all that the asker holds there."""

    name: str
    generation: int
    vector: dict[int, int]
    after: str
    upto: str | None
    total: bytes


class StretchAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What is held in (after, upto], unless it is the same; ``None`` for ``upto``: to the end."""

    vector: dict[int, int]
    known: bool
    upto: str | None = None
    same: bool = False
    held: list[Entry] = []


class States(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How have you these? ``differs``: you and we have them otherwise."""

    name: str
    generation: int
    keys: list[str]
    differs: bool = False


class StatesAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Write Events for the first ``looked`` of the keys, as far as they are there and sound; first
    those that make the database what it is.
    """

    vector: dict[int, int]
    looked: int
    database: list[bytes]
    events: list[bytes]


class Doubt(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """We hold the same, and our digests differ."""

    name: str
    generation: int


Question = Everything | Whole | Stretch | States | Doubt
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_everything = msgspec.msgpack.Decoder(EverythingAnswer).decode
decode_whole = msgspec.msgpack.Decoder(WholeAnswer).decode
decode_stretch = msgspec.msgpack.Decoder(StretchAnswer).decode
decode_states = msgspec.msgpack.Decoder(StatesAnswer).decode
encode = msgspec.msgpack.Encoder().encode


def total_of(claims: Sequence[Claim]) -> bytes:
    """One number for all databases."""
    return blake2b(encode(claims), digest_size=16).digest()


def total_held(found: Iterable[Held]) -> bytes:
    """One number for a range."""
    return reduce(xor, (one.number for one in found), 0).to_bytes(16, "big")


def entries(found: Iterable[Held], vector: Vector) -> list[Entry]:
    """As they are told to somebody who contains this vector."""
    return [Entry(one.key, one.number.to_bytes(16, "big"), one.is_beyond(vector)) for one in found]


def apart(mine: bytes, own: Mapping[str, int], answer: WholeAnswer) -> bytes | None:
    """By how much two digests differ without what either may have later; ``None``: not at all.

    ``own`` are the numbers here of all that is left out: what may be later here, and what the
    answer says may be later there; what is not here has none.
    """
    theirs = {one.key: int.from_bytes(one.number, "big") for one in answer.changed + answer.held}
    left_out = {one.key for one in answer.changed} | set(own)
    difference = int.from_bytes(mine, "big") ^ int.from_bytes(answer.digest or b"", "big")
    for key in left_out:
        difference ^= own.get(key, 0) ^ theirs.get(key, 0)
    return difference.to_bytes(16, "big") if difference else None


def differing(mine: Sequence[Held], own: Vector, answer: StretchAnswer) -> list[str]:
    """The keys of a range that both must have alike, and have not; ``own`` is our vector."""
    here = {one.key: one for one in mine if answer.upto is None or one.key <= answer.upto}
    there = {one.key: one for one in answer.held}
    found = []
    for key in sorted(here.keys() | there.keys()):
        one, other = here.get(key), there.get(key)
        may_be_later = (one is not None and one.is_beyond(answer.vector)) or (
            other is not None and other.beyond
        )
        number = one.number if one is not None else 0
        if not may_be_later and number != int.from_bytes(other.number if other else b"", "big"):
            found.append(key)
    return found


class Standing(msgspec.Struct, frozen=True):
    """A database as two nodes have it, as far as their claims say."""

    same: list[str]
    differ: list[str]
    """Both have this generation, with other digests."""
    owed: list[str]
    """There, and not here, or not so far."""
    ahead: list[str]
    """Here, and not there, or not so far."""


def standing(mine: Sequence[Claim], theirs: Sequence[Claim]) -> Standing:
    """What two lists of claims say of each database, by name."""
    here = {one.name: one for one in mine}
    there = {one.name: one for one in theirs}
    found = Standing([], [], [], [])
    for name in sorted(here.keys() | there.keys()):
        one, other = here.get(name), there.get(name)
        if one == other:
            found.same.append(name)
        elif _register(one) == _register(other):
            found.differ.append(name)
        elif _register(one) < _register(other):
            found.owed.append(name)
        else:
            found.ahead.append(name)
    return found


def _register(claim: Claim | None) -> tuple[int, bool]:
    return (0, False) if claim is None else (claim.generation, claim.dropped)


def common(one: Vector, other: Vector) -> dict[int, int]:
    """What both contain."""
    return {origin: min(n, other[origin]) for origin, n in one.items() if other.get(origin, 0)}


class Owed(msgspec.Struct, frozen=True):
    """A database that another node had at some moment and we had not: who contains as much as it
    did then has it, too.
    """

    vector: dict[int, int]
    generation: int
    dropped: bool

    def is_overdue(self, vector: Vector, mine: Claim | None) -> bool:
        """Do we contain so much, and have it not?"""
        return covers(vector, self.vector) and _register(mine) < (self.generation, self.dropped)
