"""The role loop: what a node does besides answering requests.

    as master   publish its own writes, apply the other masters', pass those on to its replicas
    as replica  apply what its master's board brings

A role is something that one is inside of: leaving ``as_master`` or ``as_replica`` ends all of it.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from divandb.applier import Applier
from divandb.board.base import BoardError, BoardLimits, EventBoard
from divandb.board.source import BoardSource
from divandb.clock import Clock, Rng
from divandb.cluster import topics
from divandb.cluster.fetching import Fetcher
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress, Reach
from divandb.cluster.relay import Relay
from divandb.config import REPLICA, Config
from divandb.publisher import Publisher, batches
from divandb.store import arrivals, outbox, positions
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.positions import Position
from divandb.telemetry import Log, Trouble

READ_BYTES_MAX = 256 * 1024
READ_WAIT_S = 5.0
LOOK_FOR_SLOTS_S = 2.0
"""So often a master looks whether there are new slots."""
LOOK_AT_LIMITS_S = 10.0
"""So often, how large messages may be."""
LOOK_AGAIN_S_MIN = 0.05
"""At the start, when the board may not have its topics yet, it looks again after this time."""

Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]
Pace = Callable[[float, int], Awaitable[None]]


@dataclasses.dataclass
class Parts:
    """What a role works with."""

    config: Config
    board: EventBoard
    limits: BoardLimits
    reading: Connection
    execute: Execute
    has_gap: Callable[[], bool]
    """Was anything applied ahead of the vector?"""
    progress: Progress
    boarded: Reach
    """What of this node's own writes is on the Masters' Board."""
    wrote: asyncio.Event
    """Set when this node's outbox grows."""
    peers: Peers
    fetcher: Fetcher
    pace: Pace
    clock: Clock
    rng: Rng
    log: Log


class Role:
    """What is running now, for ``status``."""

    def __init__(self) -> None:
        self.publisher: Publisher | None = None
        self.relay: Relay | None = None
        self.appliers: dict[str, Applier] = {}
        """By slot for a master, ``replicas`` for a replica."""
        self.small: dict[str, int] = {}
        """Topics that take smaller messages than this node was to send, and how large ones."""

    def is_cut_off(self) -> bool:
        """Is the board known to bring nothing just now?"""
        publisher_fails = self.publisher is not None and self.publisher.failing is not None
        return publisher_fails or any(one.failing for one in self.appliers.values())


@contextlib.asynccontextmanager
async def as_master(parts: Parts, role: Role) -> AsyncIterator[None]:
    """Publish, apply and relay while inside."""
    config, cluster = parts.config, parts.config.keys.cluster
    own, shared = topics.replicas(cluster, config.slot), topics.masters(cluster)
    partition = topics.partition_of(config.slot)

    async def to_replicas(messages: Sequence[bytes]) -> None:
        if not _has_replicas(parts):
            return  # who comes later copies a file, and asks for what follows
        for batch in batches(messages, parts.limits.batch_bytes_max):
            await parts.board.publish(own, 0, batch)

    async def to_all(messages: Sequence[bytes]) -> None:
        sent = [parts.board.publish(shared, partition, messages)]
        if _has_replicas(parts):
            sent.append(parts.board.publish(own, 0, messages))
        await asyncio.gather(*sent)

    def published(origin: int, oseq: int) -> None:
        parts.boarded.advance({**parts.boarded.vector, origin: oseq})

    role.relay = Relay(to_replicas, config.limits.relay_bytes_max, parts.rng, parts.log)
    role.publisher = Publisher(
        lambda after, rows_max: outbox.page(
            parts.reading, after, rows_max, parts.limits.batch_bytes_max
        ),
        lambda attached: outbox.chunks(parts.reading, attached),
        to_all,
        lambda upto: parts.execute(lambda ledger: outbox.trim(ledger.connection, upto), 0),
        parts.wrote, parts.rng, parts.log,
        published=published,
        message_bytes_max=parts.limits.message_bytes_max,
        batch_bytes_max=parts.limits.batch_bytes_max,
    )  # fmt: skip
    loops = [
        role.publisher.run(), role.relay.run(), _follow_slots(parts, role, shared, partition),
        _watch_limits(parts, role, (shared, own)),
    ]  # fmt: skip
    async with _running(loops):
        yield


def _has_replicas(parts: Parts) -> bool:
    mine = parts.config.slot
    return any(p.member.role == REPLICA and p.member.slot == mine for p in parts.peers.all())


async def _watch_limits(parts: Parts, role: Role, watched: Sequence[str]) -> None:
    """Send nothing that a board does not take: what is larger goes in chunks."""
    publisher, wanted = role.publisher, parts.limits.message_bytes_max
    assert publisher is not None
    while True:
        for topic in watched:
            try:
                limit = (await parts.board.describe(topic)).message_bytes_max
            except BoardError:
                continue  # whoever publishes meets it, and tells
            if limit < wanted and limit != role.small.get(topic):
                parts.log.event("small messages only", topic=topic, limit=limit, wanted=wanted)
            if limit < wanted:
                role.small[topic] = limit
            else:
                role.small.pop(topic, None)
        publisher.message_bytes_max = min([wanted, *role.small.values()])
        await asyncio.sleep(LOOK_AT_LIMITS_S)


async def _follow_slots(parts: Parts, role: Role, topic: str, own: int) -> None:
    """Apply every other master's partition; a new one is found, and read from its start."""
    relay = role.relay
    assert relay is not None
    tasks: list[asyncio.Task[None]] = []
    trouble = Trouble(parts.log, "the board cannot be described")
    loop, pause_s = asyncio.get_running_loop(), LOOK_AGAIN_S_MIN
    try:
        while True:
            try:
                count = len((await parts.board.describe(topic)).partitions)
                trouble.over()
                pause_s = LOOK_FOR_SLOTS_S
            except Exception as fault:
                trouble.met(fault, loop.time())
                count = 0
                pause_s = min(pause_s * 2, LOOK_FOR_SLOTS_S)
            for partition in range(count):
                slot = f"m{partition + 1}"
                if partition != own and slot not in role.appliers:
                    applier = _applier(parts, topic, partition, relay)
                    role.appliers[slot] = applier
                    tasks.append(asyncio.create_task(applier.run()))
            await asyncio.sleep(pause_s)
    finally:
        await _ended(tasks)


@contextlib.asynccontextmanager
async def as_replica(parts: Parts, role: Role) -> AsyncIterator[None]:
    """Apply what the slot's master puts on its board while inside."""
    topic = topics.replicas(parts.config.keys.cluster, parts.config.slot)
    applier = _applier(parts, topic, 0, None)
    role.appliers["replicas"] = applier
    async with _running([applier.run()]):
        yield


def _applier(parts: Parts, topic: str, partition: int, relay: Relay | None) -> Applier:
    source = BoardSource(
        parts.board, topic, partition, "board", bytes_max=READ_BYTES_MAX, wait_s=READ_WAIT_S
    )
    position = positions.read(parts.reading, source.board, topic, partition)
    if relay is not None and position is not None:
        relay.begin(position)

    async def take(messages: list[bytes], reached: Position) -> None:
        now_ms = parts.clock.wall_ms()

        if relay is not None and not messages:
            relay.begin_once(reached)
        stored = relay.passed_on(reached) if relay is not None else reached

        def step(ledger: Ledger) -> None:
            # Only the slot's master can write on its replicas' board, and it has looked already.
            arrivals.take(ledger, messages, now_ms, checked=relay is None)
            positions.write(ledger.connection, stored)

        await parts.execute(step, sum(map(len, messages)))

    return Applier(
        source, position, take, parts.has_gap, parts.fetcher.catch_up,
        parts.rng, parts.log, pace=parts.pace, applied=relay.put if relay is not None else None,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _running(loops: Sequence[Any]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
