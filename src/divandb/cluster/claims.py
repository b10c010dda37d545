"""The claims log: who takes over which slot, in which epoch. It is a topic that all nodes may
write.

A claim is a MessagePack array ``[version, slot, epoch, name, stamp_ms]``. The first claim of an
epoch holds it; every other claimant steps down. An owner that starts again looks whether somebody
has claimed a later one meanwhile. Nobody waits for the log: with the board away a slot is taken
over all the same, and claimed later.
"""

from collections.abc import AsyncIterator

import msgspec

from divandb.board.base import EventBoard, OffsetGone
from divandb.cluster import topics
from divandb.tenure import Owner

VERSION = 1
READ_BYTES_MAX = 256 * 1024


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """``name`` takes over ``slot``, and begins ``epoch``."""

    version: int
    slot: str
    epoch: int
    name: str
    stamp_ms: int
    """Wall clock, for people."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Claim).decode


async def claim(board: EventBoard, cluster: str, slot: str, owner: Owner, now_ms: int) -> Owner:
    """Who holds the epoch that ``owner`` claims: the first who claimed it. Raises ``BoardError``.

    The log is read to its end, since a claim that was sent may be there without an answer.
    """
    topic = topics.claims(cluster)
    holder = await _holder(board, topic, slot, owner.epoch)
    if holder is None:
        mine = Claim(VERSION, slot, owner.epoch, owner.name, now_ms)
        await board.publish(topic, 0, [_encode(mine)])
        holder = await _holder(board, topic, slot, owner.epoch)
    return Owner(owner.epoch, holder or owner.name, is_confirmed=True)


async def newest(board: EventBoard, cluster: str, slot: str) -> Owner | None:
    """Who holds the slot's greatest epoch, as far as the log goes back. Raises ``BoardError``."""
    found: Owner | None = None
    async for one in _claims(board, topics.claims(cluster)):
        if one.slot == slot and (found is None or one.epoch > found.epoch):
            found = Owner(one.epoch, one.name, is_confirmed=True)
    return found


async def _holder(board: EventBoard, topic: str, slot: str, epoch: int) -> str | None:
    """Who claimed an epoch first; ``None``: nobody has."""
    async for one in _claims(board, topic):
        if (one.slot, one.epoch) == (slot, epoch):
            return one.name
    return None


async def _claims(board: EventBoard, topic: str) -> AsyncIterator[Claim]:
    """All that the log holds by now, in its order."""
    place = (await board.describe(topic)).partitions[0].start
    while True:
        try:
            batch = await board.read(topic, 0, place, bytes_max=READ_BYTES_MAX, wait_s=0.0)
        except OffsetGone as gone:
            place = gone.start
            continue
        for message in batch.messages:
            one = _read(message)
            if one is not None:
                yield one
        if not batch.messages or batch.next >= batch.end:
            return
        place = batch.next


def _read(message: bytes) -> Claim | None:
    """``None`` for what no claim of this version is."""
    try:
        found = _decode(message)
    except msgspec.MsgspecError:
        return None
    return found if found.version == VERSION else None
