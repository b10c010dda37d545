"""The answering side of a proof: what this node holds, each answer read in one transaction."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from divandb.cluster import proving
from divandb.cluster.proving import (
    Doubt,
    Everything,
    EverythingAnswer,
    Question,
    States,
    StatesAnswer,
    Stretch,
    StretchAnswer,
    Whole,
    WholeAnswer,
)
from divandb.errors import BadRequest, Busy
from divandb.store import changes, endings, proofs
from divandb.store.file import Connection
from divandb.store.spares import Spares

ANSWERS_MAX = 4
"""At a time."""
CLAIMS_MAX = 10_000
"""Databases that one answer tells of."""
STATES_MAX = 64
STATES_BYTES_MAX = 4 * 2**20
"""States of one answer; the one that passes it is in it."""

Offload = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def reader(spares: Spares, offload: Offload) -> AsyncIterator[Connection]:
    """A reader's connection, to be used by one call of ``offload`` at a time."""
    connection = await offload(spares.take)
    try:
        yield connection
    except BaseException:
        # A thread may still be at it, when the node stops.
        with suppress(Exception):
            connection.close()
        raise
    spares.give_back(connection)


class Witness:
    """Answers other nodes."""

    def __init__(self, spares: Spares, offload: Offload) -> None:
        self._spares = spares
        self._offload = offload
        self._under_way = 0
        self.differs: Callable[[str], None] = lambda asker: None
        """Called when another node has found that it differs from us."""
        self.doubted: Callable[[str, int], None] = lambda name, generation: None
        """Called when the digest that is kept of a database may be wrong."""

    async def answer(self, asker: str, body: bytes) -> bytes:
        """The answer to one question; raises ``Busy``, and ``BadRequest`` for what is none."""
        try:
            question = proving.decode_question(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BadRequest("The question cannot be read.") from None
        if isinstance(question, States) and question.differs:
            self.differs(asker)
        if isinstance(question, Doubt):
            self.differs(asker)
            self.doubted(question.name, question.generation)
            return proving.encode(None)
        if self._under_way >= ANSWERS_MAX:
            raise Busy("Too many nodes are asking.")
        self._under_way += 1
        try:
            answer: bytes = await self._offload(self._read, question)
        finally:
            self._under_way -= 1
        return answer

    def _read(self, question: Question) -> bytes:
        connection = self._spares.take()
        try:
            with connection:
                answer = answer_to(connection, question)
        finally:
            self._spares.give_back(connection)
        return proving.encode(answer)


def answer_to(connection: Connection, question: Question) -> Any:
    """What this file says; a transaction of the caller's holds one snapshot."""
    closings = endings.load(connection)
    vector = closings.compact(changes.vector(connection))
    if isinstance(question, Whole | Stretch):
        whole = closings.expand(question.vector)
        question = msgspec.structs.replace(question, vector=whole)
    if isinstance(question, Everything):
        return _everything(connection, question, vector)
    if isinstance(question, Whole):
        return _whole(connection, question, vector)
    if isinstance(question, Stretch):
        return _stretch(connection, question, vector)
    assert isinstance(question, States)
    return _states(connection, question, vector)


def _everything(
    connection: Connection, question: Everything, vector: dict[int, int]
) -> EverythingAnswer:
    claims = proofs.claims(connection, question.after)
    if not question.after and proving.total_of(claims) == question.total:
        return EverythingAnswer(vector, same=True)
    more = len(claims) > CLAIMS_MAX
    return EverythingAnswer(vector, False, claims[:CLAIMS_MAX], more)


def _whole(connection: Connection, question: Whole, vector: dict[int, int]) -> WholeAnswer:
    database = proofs.living(connection, question.name, question.generation)
    if database is None:
        return WholeAnswer(vector)
    changed = proofs.changed(connection, database, question.vector)
    if changed is None:
        return WholeAnswer(vector)
    keys = question.keys[: proofs.CHANGED_MAX]
    return WholeAnswer(
        vector, database.digest,
        proving.entries(changed, question.vector),
        proving.entries(proofs.held(connection, database, keys), question.vector),
    )  # fmt: skip


def _stretch(connection: Connection, question: Stretch, vector: dict[int, int]) -> StretchAnswer:
    database = proofs.living(connection, question.name, question.generation)
    if database is None:
        return StretchAnswer(vector, known=False)
    found, upto = proofs.stretch(connection, database, question.after, question.upto)
    if upto == question.upto and proving.total_held(found) == question.total:
        return StretchAnswer(vector, True, upto, same=True)
    return StretchAnswer(vector, True, upto, False, proving.entries(found, question.vector))


def _states(connection: Connection, question: States, vector: dict[int, int]) -> StatesAnswer:
    made = proofs.register_events(connection, question.name)
    database = proofs.living(connection, question.name, question.generation)
    found: list[bytes] = []
    if database is None:
        return StatesAnswer(vector, len(question.keys), made, found)
    looked = size = 0
    for key in question.keys[:STATES_MAX]:
        event = proofs.state_event(connection, database, key, vector)
        looked += 1
        if event is not None:
            found.append(event)
            size += len(event)
        if size >= STATES_BYTES_MAX:
            break
    return StatesAnswer(vector, looked, made, found)
