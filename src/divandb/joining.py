"""What a node does before it opens its file: is there a peer's file that it should rather have?

A node without a file, or one that was away for long, asks the members that it knows what they
contain, with a heartbeat. If one is far enough ahead (``cluster.snapshots.wanted``), its file is
copied: from a node of the own zone if there is one; among these from a replica of the own slot, so
that masters are spared, then from the slot's master, then from another replica, and from another
master last; among equals from the one that answered first. If nobody answers or nobody has
anything, the node starts with what it has: catch-up brings the rest, only more slowly.

All of it is bounded: the asking by ``join_wait_ms``, each copy by ``snapshots.Bounds``.
"""

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec

from divandb.clock import Clock, Rng
from divandb.closest import is_away
from divandb.closings import NONE
from divandb.cluster import messages, snapshots
from divandb.cluster.messages import Heartbeat, Seen
from divandb.cluster.snapshots import NOTE_NAME, PART_NAME, Progress
from divandb.cluster.trust import SCHEME
from divandb.config import MASTER, REPLICA, Config, Member
from divandb.errors import StorageFull
from divandb.link import Link, LinkBounds, LinkBroken
from divandb.store import snapshot
from divandb.store.file import FILE_NAME, DamagedError, Disk, FileError, set_aside
from divandb.store.snapshot import Standing
from divandb.telemetry import Log
from divandb.vector import Vector

ANSWER_BYTES_MAX = 4 * 2**20
MEMBERS_MAX = 4096
OTHERS_S_MAX = 0.1
"""Once somebody who contains anything has answered, the others have so much time left."""
UNHEARD_MS = 1e9
"""A node that joins says of itself that it was not heard of for long: nobody counts on it yet."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A member that answered."""

    member: Member
    vector: Vector
    took_s: float


async def join(
    config: Config, clock: Clock, rng: Rng, log: Log, status: Callable[[Progress], None],
    tls: ssl.SSLContext | None = None,
) -> None:  # fmt: skip
    """Have the best file there is in the data folder; no process may have it open.

    Called at each start. First it ends what an interrupted start has begun. ``status`` hears how
    far a copy has come; ``arriving`` tells the same to other processes. ``tls`` is for https URLs.
    A file that is damaged is set aside, if there is somebody else who has anything. Raises
    ``FileError`` for one that cannot be read.
    """
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    await asyncio.to_thread(snapshot.finish, config.data)
    if not config.seeds:
        return
    held, damage = await asyncio.to_thread(_held, config.data)
    if config.founding and damage is None:
        return
    found = await survey(config, clock, rng, tls)
    if damage is not None:
        if not any(any(one.vector.values()) for one in found):
            raise damage
        place = await asyncio.to_thread(set_aside, config.data, f"{clock.wall_ms()}")
        log.event("the file is damaged and set aside", why=str(damage), place=str(place))
    sources = ranked(config, held, found)
    log.event("joining", answers=len(found), sources=len(sources), is_new=held is None)
    for source in sources:
        if await _copied(config, source, clock, rng, log, status, tls, replace=held is not None):
            return
    # What has come of a copy that nobody goes on with only takes room.
    await asyncio.to_thread(snapshots.discard, config.data)


def _held(folder: Path) -> tuple[Standing | None, DamagedError | None]:
    """What the node's file holds, or what is wrong with it."""
    try:
        return snapshot.standing(Disk(folder / FILE_NAME)), None
    except DamagedError as damage:
        return None, damage


async def _copied(
    config: Config, source: Found, clock: Clock, rng: Rng, log: Log,
    status: Callable[[Progress], None], tls: ssl.SSLContext | None, *, replace: bool,
) -> bool:  # fmt: skip
    began = clock.monotonic()
    try:
        done = await snapshots.fetch(
            source.member.url, SCHEME + config.keys.token, config.data, clock, rng, status, log,
            cluster=config.keys.cluster, replace=replace, tls=tls,
        )  # fmt: skip
    except (FileError, StorageFull) as problem:
        log.event("no snapshot", source=source.member.name, why=str(problem))
        return False
    if done:
        took_s = round(clock.monotonic() - began, 1)
        log.event("snapshot taken over", source=source.member.name, took_s=took_s)
    return done


def ranked(config: Config, held: Standing | None, found: list[Found]) -> list[Found]:
    """Those whose file is better than what is here, the best source first.

    ``held`` is what is in this node's file; ``None`` if there is none.
    """
    own = None if held is None else held.vector
    kept_rows = 0 if held is None else held.kept_rows
    behind_max = config.limits.snapshot_behind_max
    closings = NONE if held is None else held.closings
    better = [
        one
        for one in found
        if snapshots.wanted(own, closings.expand(one.vector), kept_rows, behind_max)
    ]
    return sorted(better, key=lambda one: (*_distance(config, one.member), one.took_s))


def _distance(config: Config, member: Member) -> tuple[bool, int]:
    """Is it in another zone? And 0 for a replica of the own slot, 1 for its master, 2 for other
    replicas, 3 for masters.
    """
    place = 2 * (member.slot != config.slot) + (member.role != REPLICA)
    return is_away(config.zone, member.zone), place


# Asking


async def survey(
    config: Config, clock: Clock, rng: Rng, tls: ssl.SSLContext | None = None
) -> list[Found]:
    """What the seeds contain, and those whom they name; within ``join_wait_ms``."""
    return await _Survey(config, clock, rng, tls).run()


class _Survey:
    """Questions to many, each asked once."""

    def __init__(self, config: Config, clock: Clock, rng: Rng, tls: ssl.SSLContext | None) -> None:
        self._config = config
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._asked = {config.name}
        self._found: list[Found] = []

    async def run(self) -> list[Found]:
        """All who have answered in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.limits.join_wait_ms / 1000
        waiting = self._ask(list(self._config.seeds))
        try:
            while waiting and (left_s := until - loop.time()) > 0:
                done, waiting = await asyncio.wait(
                    waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    waiting |= self._ask(task.result())
                if any(any(one.vector.values()) for one in self._found):
                    until = min(until, loop.time() + OTHERS_S_MAX)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return self._found

    def _ask(self, members: list[Member]) -> set["asyncio.Task[list[Member]]"]:
        """Start asking those who were not asked yet."""
        due = []
        for member in members:
            if member.name not in self._asked and len(self._asked) < MEMBERS_MAX:
                self._asked.add(member.name)
                due.append(member)
        return {asyncio.create_task(self._question(member)) for member in due}

    async def _question(self, member: Member) -> list[Member]:
        """Ask one; whom it names, if it answers."""
        answer_s_max = self._config.limits.join_wait_ms / 1000
        link = Link(
            member.url,
            {"authorization": SCHEME + self._config.keys.token},
            self._rng,
            LinkBounds(connect_s_max=answer_s_max, answer_s_max=answer_s_max),
            self._tls,
        )
        began = self._clock.monotonic()
        try:
            told = await self._heartbeat(link)
        except (LinkBroken, msgspec.MsgspecError, ValueError):
            return []
        finally:
            await link.close()
        if not told.members or told.members[0].name != member.name:
            return []  # somebody else has that address by now
        self._found.append(Found(member, told.vector, self._clock.monotonic() - began))
        # A replica speaks for itself alone.
        named = told.members[1:] if told.members[0].role == MASTER else []
        return [Member(one.name, one.role, one.slot, one.url, one.zone) for one in named]

    async def _heartbeat(self, link: Link) -> Heartbeat:
        me = self._config.member
        seen = Seen(me.name, me.role, me.slot, me.url, self._clock.wall_ms(), UNHEARD_MS, me.zone)
        reply = await link.ask(
            "POST",
            f"{messages.PREFIX}/heartbeat",
            messages.encode(Heartbeat({}, {}, 0.0, None, [], [seen], asks=True)),
            body_bytes_max=ANSWER_BYTES_MAX,
            repeatable=True,
        )
        if reply.status != 200:
            raise LinkBroken(f"answered {reply.status}", sent=True)
        return messages.decode_heartbeat(reply.body)


# Progress, for other processes


class _Offered(msgspec.Struct):
    size_bytes: int


class _Note(msgspec.Struct):
    source: str
    offer: _Offered


_decode_note = msgspec.json.Decoder(_Note).decode


def arriving(folder: Path) -> Progress | None:
    """How far the copy is that a node with this data folder is fetching; ``None``: there is none.

    Raises nothing: what cannot be read is not there.
    """
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        note = _decode_note((folder / NOTE_NAME).read_bytes())
        return Progress(note.source, (folder / PART_NAME).stat().st_size, note.offer.size_bytes)
    return None
