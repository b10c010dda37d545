"""The role loop: what a node does besides answering requests.

    as master   publish its own writes, apply the other masters', pass those on to its replicas
    as replica  apply what its master's board brings

A role is something that one is inside of: leaving ``as_master`` or ``as_replica`` ends all of it.
``run`` is inside of the one that the tenure says, and changes when that changes. It lives
on the clients' loop; publisher, appliers and relay on the writer's thread (``Parts.there``).

Whoever takes a slot over (``cluster.failover``) begins where its predecessor's word on the
Replicas' Board says: the Masters' Board from there on, the slot's own partition too, and then what
the group holds and the board lacks (``cluster.estate``). Only then are writes accepted.
"""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from divandb.applier import Applier
from divandb.board.base import BoardError, BoardLimits, EventBoard
from divandb.board.source import BoardSource
from divandb.clock import COUNTER_BITS, Clock, Rng
from divandb.cluster import topics
from divandb.cluster.closer import Closer
from divandb.cluster.estate import Estate
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress, Reach
from divandb.cluster.relay import Relay
from divandb.config import BoardAccess, Config
from divandb.event import Passed, passed
from divandb.governor import Governor
from divandb.publisher import Publisher, batches
from divandb.store import arrivals, outbox, positions, succession
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.positions import Position
from divandb.telemetry import Log
from divandb.tenure import Tenure
from divandb.trouble import Trouble
from divandb.vector import Vector, covers

REPLICAS = "replicas"
"""The applier of a replica, among the names of slots."""
POLL_S = 0.005
BEGIN_AGAIN_S = 0.2
READ_BYTES_MAX = 256 * 1024
READ_WAIT_S = 5.0
LOOK_FOR_SLOTS_S = 2.0
"""So often a master looks whether there are new slots."""
LOOK_AT_LIMITS_S = 10
"""So often, how large messages may be; each second while something cannot be published."""
TELL_PLACE_S = 1.0
"""So often a master tells its replicas how far it has come."""
TIDY_S = 1.0
"""So often a replica looks whether the slot's owner has what it wrote itself as a master."""
SUCCEED_S_MAX = 2.0
"""A new owner accepts writes after this time, even if the boards keep it waiting."""
SYNC_ALL, SYNC_SOME = 2, 1
"""SQLite's numbers for FULL, where each commit is durable, and NORMAL."""
LOOK_AGAIN_S_MIN = 0.05
"""At the start, when the board may not have its topics yet, it looks again after this time."""

Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]
Give = Callable[[Vector], AsyncIterator[bytes]]
OpenBoard = Callable[[BoardAccess], EventBoard]
There = Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]


@dataclasses.dataclass
class Parts:
    """What a role works with."""

    config: Config
    tenure: Tenure
    open_board: OpenBoard
    limits: BoardLimits
    reading: Connection
    writing: Connection
    """For reading on the writer's thread."""
    there: There
    """Has something done on the writer's thread."""
    execute: Execute
    """From either thread."""
    has_gap: Callable[[], bool]
    """Was anything applied ahead of the vector?"""
    progress: Progress
    boarded: Reach
    """What of this node's own writes is on the Masters' Board."""
    published: Callable[[Vector], None]
    """Told of more of it on the writer's thread."""
    wrote: asyncio.Event
    """Set on the writer's thread when this node's outbox grows."""
    peers: Peers
    catch_up: Callable[[], Awaitable[bool]]
    """Asks a peer for what is missing: was there an answer? From either thread."""
    give: Give
    """What lies beyond a vector here."""
    set_synchronous: Callable[[int], None]
    """SQLite's number, from the next commit on."""
    own_origin: Callable[[], int | None]
    governor: Governor
    clock: Clock
    rng: Rng
    log: Log


class Role:
    """What is running now, for ``status``."""

    def __init__(self) -> None:
        self.board: EventBoard | None = None
        """The boards as this role sees them."""
        self.there: There
        """Has something done on the writer's thread."""
        self.publisher: Publisher | None = None
        self.relay: Relay | None = None
        self.estate: Estate | None = None
        self.appliers: dict[str, Applier] = {}
        """By slot for a master, ``REPLICAS`` for a replica."""
        self.small: dict[str, int] = {}
        """Topics that take smaller messages than this node was to send, and how large ones."""

    def is_cut_off(self) -> bool:
        """Is the board known to bring nothing just now?"""
        publisher_fails = self.publisher is not None and self.publisher.failing is not None
        return publisher_fails or any(one.failing for one in self.appliers.values())

    def is_fed(self) -> bool:
        """Is more on its way from the board than was applied here?"""
        reading = list(self.appliers.values())
        return any(one.end is not None and one.position.next < one.end for one in reading)

    async def read_to_end(self, within_s: float) -> bool:
        """Apply what is on the slot's Replicas' Board by now; was there an end?"""
        applier, board = self.appliers.get(REPLICAS), self.board
        if applier is None or board is None:
            return False
        with contextlib.suppress(BoardError, TimeoutError):
            async with asyncio.timeout(within_s):
                end = (await board.describe(applier.position.topic)).partitions[0].end
                while applier.position.next < end:
                    await asyncio.sleep(POLL_S)
                return True
        return False

    async def finish(self, within_s: float) -> bool:
        """Publish what was written by now, and what waits to be passed on; is all of it gone?"""
        publisher, relay = self.publisher, self.relay
        if publisher is None or relay is None:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.there(publisher.flush())
                while relay.waits:
                    await asyncio.sleep(POLL_S)
                return True
        return False

    @property
    def is_held_up(self) -> bool:
        """Does a board take nothing just now?"""
        faults = [one.failing for one in (self.publisher, self.relay) if one is not None]
        return any(one is not None for one in faults)

    def leave(self) -> None:
        """Nothing of it runs any more."""
        self.board = self.publisher = self.relay = self.estate = None
        self.appliers.clear()
        self.small.clear()


async def run(parts: Parts, role: Role) -> None:
    """Be what the tenure says, until cancelled."""
    tenure = parts.tenure
    trouble = Trouble(parts.log, "the role cannot begin")
    while True:
        is_owner = tenure.is_owner
        try:
            async with (as_master if is_owner else as_replica)(parts, role):
                trouble.over()
                while tenure.is_owner == is_owner:
                    await tenure.moved.wait()
                    tenure.moved.clear()
        except Exception as fault:
            trouble.met(fault, asyncio.get_running_loop().time())
            await asyncio.sleep(BEGIN_AGAIN_S)
        parts.log.event("changes its role", role=tenure.role)


@contextlib.asynccontextmanager
async def _on_boards(parts: Parts, role: Role) -> AsyncIterator[EventBoard]:
    """The boards, opened as this role opens them."""
    access = parts.tenure.board
    assert access is not None
    board = parts.open_board(access)
    role.board, role.there = board, parts.there
    try:
        yield board
    finally:
        role.leave()
        await board.close()


@contextlib.asynccontextmanager
async def as_master(parts: Parts, role: Role) -> AsyncIterator[None]:
    """Publish, apply and relay while inside; writes are accepted."""
    async with _on_boards(parts, role) as board:
        # From now on what is answered is durable.
        parts.set_synchronous(SYNC_ALL)
        left, slots = await parts.execute(_begun, 0)
        # Heartbeats tell these only now and then; a young origin of this slot must not be missed.
        parts.progress.slots.update(slots)
        parts.progress.own(parts.config.slot, is_own=True)
        boards = _Boards(parts, board)
        relay = role.relay = Relay(
            boards.to_replicas, parts.config.limits.relay_bytes_max, parts.rng, parts.log
        )
        role.publisher = _publisher(parts, boards)
        estate = role.estate = _estate(parts, boards)
        estate.begin(left)
        loops = [
            parts.there(role.publisher.run()), parts.there(relay.run()),
            _follow_slots(parts, role, boards), _watch_limits(parts, role, boards),
            _tell_place(parts, role, boards), _closer(parts, estate).run(),
        ]  # fmt: skip
        async with _running(loops):
            async with _succession(parts, role, boards, is_new=left is not None):
                parts.tenure.is_ready = True
                try:
                    yield
                finally:
                    parts.tenure.is_ready = parts.tenure.is_leaving = False
    parts.progress.own(parts.config.slot, is_own=False)


def _begun(ledger: Ledger) -> tuple[Vector | None, dict[int, str]]:
    """What is left of the slot's estate, and whose the origins are that this file knows."""
    left = succession.estate(ledger.connection)
    if left is not None:
        ledger.end_origin()  # nobody goes on with one over a change of owner
    return left, ledger.slots()


class _Boards:
    """Where a master publishes."""

    def __init__(self, parts: Parts, board: EventBoard) -> None:
        cluster, slot = parts.config.keys.cluster, parts.config.slot
        self._parts = parts
        self.board = board
        self.own, self.shared = topics.replicas(cluster, slot), topics.masters(cluster)
        self.partition = topics.partition_of(slot)
        self.next = 0
        """The offset behind what this master has published on the Masters' Board."""
        self.identity = ""
        """Of the Masters' Board, when it was last looked at."""

    async def to_replicas(self, messages: Sequence[bytes]) -> None:
        """In batches that the board takes."""
        if not _has_replicas(self._parts):
            return  # who comes later copies a file, and asks for what follows
        for batch in batches(messages, self._parts.limits.batch_bytes_max):
            await self.board.publish(self.own, 0, batch)

    async def to_all(self, messages: Sequence[bytes]) -> None:
        """One batch."""
        sent = [self.board.publish(self.shared, self.partition, messages)]
        if _has_replicas(self._parts):
            sent.append(self.board.publish(self.own, 0, messages))
        first = (await asyncio.gather(*sent))[0]
        self.next = first + len(messages)


def _publisher(parts: Parts, boards: _Boards) -> Publisher:
    def published(origin: int, oseq: int) -> None:
        parts.published({origin: oseq})

    return Publisher(
        lambda after, rows_max: outbox.page(
            parts.writing, after, rows_max, parts.limits.batch_bytes_max
        ),
        lambda attached: outbox.chunks(parts.writing, attached),
        boards.to_all,
        lambda upto: parts.execute(lambda ledger: outbox.trim(ledger.connection, upto), 0),
        parts.wrote, parts.rng, parts.log,
        published=published,
        message_bytes_max=parts.limits.message_bytes_max,
        batch_bytes_max=parts.limits.batch_bytes_max,
    )  # fmt: skip


def _estate(parts: Parts, boards: _Boards) -> Estate:
    return Estate(
        parts.config.slot, parts.config.name, parts.progress,
        lambda: outbox.unpublished(parts.reading), parts.own_origin, parts.give, boards.to_all,
        parts.execute, parts.clock, parts.log, batch_bytes_max=parts.limits.batch_bytes_max,
    )  # fmt: skip


def _closer(parts: Parts, estate: Estate) -> Closer:
    return Closer(
        parts.config.slot, parts.progress, parts.peers, estate, parts.own_origin, parts.execute,
        parts.clock, parts.log,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _succession(
    parts: Parts, role: Role, boards: _Boards, *, is_new: bool
) -> AsyncIterator[None]:
    """Have what former owners left published; a new owner waits for that, bounded."""
    async with _running([_settle(parts, role, boards, is_new=is_new)]):
        estate = role.estate
        assert estate is not None
        if is_new:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUCCEED_S_MAX):
                    await estate.settled.wait()
        yield


async def _settle(parts: Parts, role: Role, boards: _Boards, *, is_new: bool) -> None:
    """Read the slot's own partition as far as its former owners have filled it, then look after
    their estate.
    """
    estate, relay = role.estate, role.relay
    assert estate is not None and relay is not None
    if is_new:
        applier = _applier(parts, boards.board, boards.shared, boards.partition, relay, estate)
        identity, end = await _end_of_own(parts, boards)
        async with _running([parts.there(applier.run())]):
            while (at := applier.position).identity != identity or at.next < end:
                await asyncio.sleep(POLL_S)
                if at.identity != identity or (applier.end or end) < end:
                    # A board that has lost some of its log, or all, will never be so far.
                    identity, end = await _end_of_own(parts, boards)
    await estate.run()


async def _end_of_own(parts: Parts, boards: _Boards) -> tuple[str, int]:
    """The log's identity, and how far the slot's own partition goes."""
    trouble = Trouble(parts.log, "the board cannot be described")
    while True:
        try:
            info = await boards.board.describe(boards.shared)
            return info.identity, info.partitions[boards.partition].end
        except BoardError as fault:
            trouble.met(fault, asyncio.get_running_loop().time())
            await asyncio.sleep(BEGIN_AGAIN_S)


async def _tell_place(parts: Parts, role: Role, boards: _Boards) -> None:
    """Tell the replicas how far this master has come: one of them may have to go on from there."""
    told: Passed | None = None
    while True:
        await asyncio.sleep(TELL_PLACE_S)
        relay, estate = role.relay, role.estate
        assert relay is not None and estate is not None
        places = [(p.topic, p.partition, p.identity, p.next) for p in relay.places()]
        if boards.next and boards.identity:
            places.append((boards.shared, boards.partition, boards.identity, boards.next))
        said = Passed(places, {**estate.told(), **parts.boarded.vector})
        if said != told and relay.failing is None:
            stamp = parts.clock.wall_ms() << COUNTER_BITS
            await relay.say(passed(parts.config.slot, stamp, said))
            told = said


def _has_replicas(parts: Parts) -> bool:
    return bool(parts.peers.group())


async def _watch_limits(parts: Parts, role: Role, boards: _Boards) -> None:
    """Send nothing that a board does not take: what is larger goes in chunks."""
    publisher, estate, wanted = role.publisher, role.estate, parts.limits.message_bytes_max
    assert publisher is not None and estate is not None
    while True:
        for topic in (boards.shared, boards.own):
            try:
                limit = (await boards.board.describe(topic)).message_bytes_max
            except BoardError:
                continue  # whoever publishes meets it, and tells
            if limit < wanted and limit != role.small.get(topic):
                parts.log.event("small messages only", topic=topic, limit=limit, wanted=wanted)
            if limit < wanted:
                role.small[topic] = limit
            else:
                role.small.pop(topic, None)
        publisher.message_bytes_max = min([wanted, *role.small.values()])
        estate.message_bytes_max = publisher.message_bytes_max
        for _ in range(LOOK_AT_LIMITS_S):
            await asyncio.sleep(1.0)
            if role.is_held_up:
                break


async def _follow_slots(parts: Parts, role: Role, boards: _Boards) -> None:
    """Apply every other master's partition; a new one is found, and read from its start."""
    relay, topic = role.relay, boards.shared
    assert relay is not None
    tasks: list[asyncio.Task[None]] = []
    trouble = Trouble(parts.log, "the board cannot be described")
    loop, pause_s = asyncio.get_running_loop(), LOOK_AGAIN_S_MIN
    try:
        while True:
            try:
                info = await boards.board.describe(topic)
                count, boards.identity = len(info.partitions), info.identity
                trouble.over()
                pause_s = LOOK_FOR_SLOTS_S
            except Exception as fault:
                trouble.met(fault, loop.time())
                count = 0
                pause_s = min(pause_s * 2, LOOK_FOR_SLOTS_S)
            for partition in range(count):
                slot = f"m{partition + 1}"
                if partition != boards.partition and slot not in role.appliers:
                    applier = _applier(parts, boards.board, topic, partition, relay)
                    role.appliers[slot] = applier
                    tasks.append(asyncio.create_task(parts.there(applier.run())))
            await asyncio.sleep(pause_s)
    finally:
        await _ended(tasks)


@contextlib.asynccontextmanager
async def as_replica(parts: Parts, role: Role) -> AsyncIterator[None]:
    """Apply what the slot's master puts on its board while inside."""
    topic = topics.replicas(parts.config.keys.cluster, parts.config.slot)
    async with _on_boards(parts, role) as board:
        await _remember_owners(parts)
        parts.set_synchronous(SYNC_SOME)
        applier = role.appliers[REPLICAS] = _applier(parts, board, topic, 0, None)
        async with _running([parts.there(applier.run()), _tidy(parts)]):
            yield


async def _remember_owners(parts: Parts) -> None:
    """While commits are still durable: a power cut must not make a former owner one again."""
    known = dict(parts.tenure.owners)
    if known != succession.owners(parts.reading):
        await parts.execute(lambda ledger: succession.set_owners(ledger.connection, known), 0)


async def _tidy(parts: Parts) -> None:
    """Forget what this node wrote as a master and had not published, once the slot's owner has it:
    that publishes it.
    """
    while True:
        await asyncio.sleep(TIDY_S)
        owner = parts.peers.master_of(parts.config.slot)
        newest = outbox.newest(parts.reading)
        if newest and owner is not None and covers(owner.vector, newest):
            upto = outbox.span(parts.reading)[1]
            await parts.execute(functools.partial(_trim, upto), 0)


def _trim(upto: int, ledger: Ledger) -> None:
    outbox.trim(ledger.connection, upto)


def _applier(
    parts: Parts, board: EventBoard, topic: str, partition: int, relay: Relay | None,
    estate: Estate | None = None,
) -> Applier:  # fmt: skip
    source = BoardSource(
        board, topic, partition, "board", bytes_max=READ_BYTES_MAX, wait_s=READ_WAIT_S
    )
    position = _place(parts.reading, source)
    if relay is not None and position is not None:
        relay.begin(position)

    async def take(messages: list[bytes], reached: Position) -> None:
        now_ms = parts.clock.wall_ms()
        if estate is not None:
            estate.note(messages)
        if relay is not None and not messages:
            relay.begin_once(reached)
        stored = relay.passed_on(reached) if relay is not None else reached

        def step(ledger: Ledger) -> None:
            # Only the slot's master can write on its replicas' board, and it has looked already.
            arrivals.take(ledger, messages, now_ms, checked=relay is None)
            positions.write(ledger.connection, stored)

        await parts.execute(step, sum(map(len, messages)))

    return Applier(
        source, position, take, parts.has_gap, parts.catch_up,
        parts.rng, parts.log, pace=parts.governor.pace_applier,
        events_max=parts.governor.batch_events,
        applied=relay.put if relay is not None else None,
    )  # fmt: skip


def _place(connection: Connection, source: BoardSource) -> Position | None:
    """Where to begin: where this node was, or where its slot's master was when it said so last."""
    own = positions.read(connection, source.board, source.topic, source.partition)
    said = positions.read(connection, succession.PASSED, source.topic, source.partition)
    if said is None or (own is not None and own.identity == said.identity and own.next > said.next):
        return own
    return Position(source.board, said.topic, said.partition, said.identity, said.next)


@contextlib.asynccontextmanager
async def _running(loops: Sequence[Any]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        await asyncio.sleep(0)  # one that has not begun could not be ended
        yield
    finally:
        await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
