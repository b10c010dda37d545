"""What nodes say to each other, as MessagePack.

    POST /_divan/heartbeat   Heartbeat → Heartbeat
    POST /_divan/commands    [Order, …] → [Answer, …], in their order
    POST /_divan/reached     Question → Reached
    POST /_divan/passed      a vector → Passing
    POST /_divan/grant       Candidacy → Grant
    POST /_divan/leave       Candidacy → Left
    POST /_divan/versions    see ``versions``
    POST /_divan/beyond      a vector → frames of Write Events, the last an ``End``

A frame is ``length: u32`` little-endian and so many bytes; the highest bit of the length marks the
last one. Whoever meets more members than it knows ignores them: fields are only ever added behind.
"""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from divandb import errors
from divandb.cluster.progress import Watermark
from divandb.commands import Command, Concern
from divandb.config import Spare
from divandb.errors import DivanError
from divandb.store.catchup import End
from divandb.tenure import Owner
from divandb.vector import Vector

PREFIX = "/_divan"
_FRAME = struct.Struct("<I")
_LAST = 1 << 31


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A member, and when the sender last heard of it."""

    name: str
    role: str
    slot: str
    url: str
    started_ms: int
    """Wall clock at the start of the process: of two URLs the later start's holds."""
    age_ms: float
    zone: str = ""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself, and of those it has heard of."""

    vector: dict[int, int]
    slots: dict[int, str]
    """Whose the origins are."""
    load_ms: float
    """How late the event loop is."""
    lag_ms: float | None
    marks: list[Watermark]
    members: list[Seen]
    """The sender first; the others only now and then."""
    asks: bool = False
    """Is the answer to name the others, too?"""
    owners: dict[str, Owner] = {}
    """Of each slot, as far as the sender knows."""
    is_drained: bool = False
    """Has an operator taken the sender out of service?"""
    has_door: bool = False
    """Has it a place on a clients' port?"""


class Order(msgspec.Struct, array_like=True):
    """A command on its way to a master, with what its session needs."""

    command: Command
    needs: dict[int, int] = {}
    concern: Concern = Concern.LOCAL


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A ``DivanError`` as it travels."""

    kind: str
    reason: str
    error: str
    headers: dict[str, str]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What became of an order."""

    refusal: Refusal | None
    result: Any
    """Builtins; refusals within it as ``{"refusal": …}``."""
    written: dict[int, int]
    slot: str
    reached: Concern = Concern.LOCAL
    visible: tuple[int, int] = (0, 0)
    """On how many nodes of how many, for ``visible``."""


class Question(msgspec.Struct, frozen=True, array_like=True):
    """Do you contain this, or will you within ``wait_ms``?"""

    needs: dict[int, int]
    wait_ms: int


class Reached(msgspec.Struct, frozen=True, array_like=True):
    """Yes or no."""

    yes: bool


class Passing(msgspec.Struct, frozen=True, array_like=True):
    """Which members of the sender's group contain what was asked for."""

    members: list[str]
    """All of them, by name."""
    passed: list[str]


class Candidacy(msgspec.Struct, frozen=True, array_like=True):
    """May the sender take over its slot?"""

    epoch: int


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """It may, or why not."""

    refusal: str
    """Empty: it may."""
    spare: Spare | None = None
    """What an owner shows."""


class Left(msgspec.Struct, frozen=True, array_like=True):
    """The slot's owner has stopped to accept writes, for the sender of the request to go on."""

    vector: dict[int, int]
    """What it contains."""
    spare: Spare | None = None
    """What an owner shows."""


_encode = msgspec.msgpack.Encoder(enc_hook=lambda value: _builtin(value)).encode
decode_heartbeat = msgspec.msgpack.Decoder(Heartbeat).decode
decode_orders = msgspec.msgpack.Decoder(list[Order]).decode
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_reached = msgspec.msgpack.Decoder(Reached).decode
decode_passing = msgspec.msgpack.Decoder(Passing).decode
decode_vector = msgspec.msgpack.Decoder(dict[int, int]).decode
decode_compaction = msgspec.msgpack.Decoder(tuple[str, int, dict[int, int]]).decode
"""(database, generation, what the node contains that was asked)"""
decode_candidacy = msgspec.msgpack.Decoder(Candidacy).decode
decode_grant = msgspec.msgpack.Decoder(Grant).decode
decode_left = msgspec.msgpack.Decoder(Left).decode
decode_end = msgspec.msgpack.Decoder(End).decode


class _Refusal(msgspec.Struct):
    error: str = ""


_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def error_of(body: bytes) -> str:
    """The ``error`` of a refusal, which is JSON; empty if there is none."""
    try:
        return _decode_refusal(body).error
    except msgspec.MsgspecError:
        return ""


def encode(value: Any) -> bytes:
    """Any of the messages as bytes."""
    return _encode(value)


def _builtin(value: Any) -> Any:
    if isinstance(value, DivanError):
        return {"refusal": refusal_of(value)}
    raise TypeError(f"{type(value).__name__} does not travel")


def answer_of(
    result: Any, written: Vector, slot: str, reached: Concern, visible: tuple[int, int]
) -> Answer:
    """What the sender of an order is told."""
    if isinstance(result, DivanError):
        return Answer(refusal_of(result), None, {}, slot)
    if isinstance(result, Exception):
        fault = DivanError("The server met an unexpected condition.")
        return Answer(refusal_of(fault), None, {}, slot)
    # What clients are told of a database or a register is what they sent.
    told = None if isinstance(result, msgspec.Struct) else result
    return Answer(None, told, dict(written), slot, reached, visible)


def refusal_of(error: DivanError) -> Refusal:
    """The error as it travels."""
    return Refusal(type(error).__name__, error.reason, error.error, error.headers)


def result_of(answer: Answer) -> Any:
    """The result as the master gave it; a refusal is an error that the caller may raise."""
    if answer.refusal is not None:
        return _error(answer.refusal)
    if isinstance(answer.result, list):
        return [_unwrapped(one) for one in answer.result]
    return answer.result


def _unwrapped(value: Any) -> Any:
    if isinstance(value, dict) and "refusal" in value:
        return _error(msgspec.convert(value["refusal"], Refusal))
    return value


def _error(refusal: Refusal) -> DivanError:
    kind = getattr(errors, refusal.kind, DivanError)
    error: DivanError = kind.__new__(kind)
    DivanError.__init__(error, refusal.reason, error=refusal.error, headers=refusal.headers)
    return error


def frame(data: bytes, *, last: bool = False) -> bytes:
    """One frame of a stream."""
    return _FRAME.pack(len(data) | (_LAST if last else 0)) + data


class Frames:
    """Takes a stream apart: ``feed`` it, get (data, is it the last)."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._buffer = bytearray()
        self._frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """The frames that are whole by now; raises ``ValueError`` for one that is too long."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _FRAME.size:
            (length,) = _FRAME.unpack_from(self._buffer, at)
            end = at + _FRAME.size + (length & ~_LAST)
            if end - at > self._frame_bytes_max:
                raise ValueError(f"a frame of {end - at} bytes")
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[at + _FRAME.size : end]), bool(length & _LAST)
            at = end
        del self._buffer[:at]
