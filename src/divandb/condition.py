"""One node's condition, as `divandb status` and ``GET /_divan/status`` show it."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import msgspec

from divandb.clock import Clock
from divandb.cluster.blobs import Gatherer
from divandb.cluster.courier import Courier
from divandb.cluster.drain import Drain
from divandb.cluster.fetching import Fetcher
from divandb.cluster.peers import Peer, Peers
from divandb.cluster.progress import Progress
from divandb.cluster.snapshots import Shelf
from divandb.cluster.verifier import Verifier
from divandb.config import MASTER, REPLICA, Config
from divandb.governor import Governor
from divandb.hot import HotDocuments
from divandb.indexer import Indexer
from divandb.node import Role
from divandb.store import arrivals, outbox
from divandb.store.file import Connection
from divandb.store.ledger import Alarms
from divandb.store.writer import Writer
from divandb.telemetry import rfc3339
from divandb.vector import Vector, in_hex

REASONS_MAX = 3
"""Holes whose reasons are shown, the latest."""
REASON_CHARS_MAX = 200


@dataclasses.dataclass(frozen=True)
class Inside:
    """The parts of a node that its condition is read from."""

    config: Config
    started_ms: int
    """Wall clock at the start of the process."""
    progress: Progress
    peers: Peers
    role: Role
    fetcher: Fetcher
    gatherer: Gatherer
    shelf: Shelf
    verifier: Verifier
    indexer: Indexer
    switching: Callable[[], list[dict[str, object]]]
    """Versions of design documents on their way."""
    writer: Writer
    courier: Courier
    governor: Governor
    hot: HotDocuments
    drain: Drain
    alarms: Alarms
    reading: Connection
    clock: Clock


def condition(inside: Inside) -> dict[str, Any]:
    """JSON: vectors have origins as 16 hex digits, times are milliseconds."""
    config, progress, peers = inside.config, inside.progress, inside.peers
    lag_ms, silent = progress.lag(config.limits.silent_slot_ms)
    now = inside.clock.monotonic()
    tenure = peers.tenure
    masters = {p.member.slot: p for p in peers.all() if tenure.owns(p.member)}
    return {
        "name": config.name,
        "role": tenure.role,
        "slot": config.slot,
        "serves": tenure.serves,
        "removed": peers.is_removed,
        "drain": _drain(inside.drain),
        "owners": {
            slot: {"name": one.name, "epoch": one.epoch, "confirmed": one.is_confirmed}
            for slot, one in sorted(tenure.owners.items())
        },
        "url": config.url,
        "zone": config.zone,
        "pid": os.getpid(),
        "started": rfc3339(inside.started_ms),
        "vector": in_hex(progress.told),
        "closed_origins": progress.closings.closed,
        "lag_ms": None if lag_ms is None else round(lag_ms, 1),
        "silent": {slot: round(age) for slot, age in silent.items()},
        "slots": {
            slot: {
                "lag_ms": None if age is None else round(age, 1),
                "lag_events": _behind(progress.vector, masters.get(slot)),
            }
            for slot, age in progress.ages_ms().items()
        },
        "board": _board(inside.role),
        "outbox_rows": _unpublished(inside),
        "queue_jobs": inside.writer.waiting_jobs,
        "forwarding_jobs": None if tenure.serves else inside.courier.waiting_jobs,
        "loop_late_ms": round(peers.load_ms, 1),
        "hot": inside.hot.status(),
        "budget": inside.governor.status(),
        "caught_up_events": inside.fetcher.events,
        "holes": _holes(inside.reading),
        "waiting_local": arrivals.count_waiting(inside.reading),
        "missing_blobs": inside.gatherer.missing,
        "fetched_blobs": inside.gatherer.fetched,
        "alarms": msgspec.to_builtins(inside.alarms),
        "snapshot": inside.shelf.status(),
        "verify": inside.verifier.status(),
        "indexes": inside.indexer.status() | {"switching": inside.switching()},
        "peers": [_peer(peers, peer, now) for peer in peers.all()],
    }


def _drain(drain: Drain) -> dict[str, Any] | None:
    """What a node that is taken out of service still has to finish."""
    left = drain.left()
    return None if left is None else {**dataclasses.asdict(left), "done": left.is_done}


def _behind(own: Vector, peer: Peer | None) -> int | None:
    """How many writes the peer has that are not here."""
    if peer is None:
        return None
    return sum(max(oseq - own.get(origin, 0), 0) for origin, oseq in peer.vector.items())


def _unpublished(inside: Inside) -> int | None:
    """Writes of a master that are not on the board yet."""
    publisher = inside.role.publisher
    if publisher is None:
        return None
    first, last = outbox.span(inside.reading)
    return max(last - max(first - 1, publisher.published), 0)


def _holes(connection: Connection) -> dict[str, Any]:
    count, reasons = arrivals.holes(connection, REASONS_MAX)
    return {"count": count, "reasons": [reason[:REASON_CHARS_MAX] for reason in reasons]}


def _board(role: Role) -> dict[str, Any]:
    return {
        "failing": role.publisher.failing if role.publisher is not None else None,
        "relay_failing": role.relay.failing if role.relay is not None else None,
        "small": role.small,
        "reading": {
            name: {
                "next": one.position.next if one.position is not None else None,
                "end": one.end,
                "failing": one.failing,
            }
            for name, one in list(role.appliers.items())
        },
    }


def _peer(peers: Peers, peer: Peer, now: float) -> dict[str, Any]:
    return {
        "name": peer.member.name,
        "role": MASTER if peers.tenure.owns(peer.member) else REPLICA,
        "slot": peer.member.slot,
        "url": peer.member.url,
        "zone": peer.member.zone,
        "live": peers.is_live(peer),
        "heard_ms": None if peer.heard is None else round((now - peer.heard) * 1000),
        "rtt_ms": None if peer.rtt_s is None else round(peer.rtt_s * 1000, 2),
    }
