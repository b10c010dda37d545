"""One node's condition, as `divandb status` and ``GET /_divan/status`` show it."""

from typing import Any

from divandb.clock import Clock
from divandb.cluster.fetching import Fetcher
from divandb.cluster.peers import Peer, Peers
from divandb.cluster.progress import Progress
from divandb.config import Config
from divandb.node import Role
from divandb.store.writer import Writer
from divandb.vector import Vector


def condition(
    config: Config,
    progress: Progress,
    peers: Peers,
    role: Role,
    fetcher: Fetcher,
    writer: Writer,
    clock: Clock,
) -> dict[str, Any]:
    """JSON: vectors have origins as 16 hex digits, times are milliseconds."""
    lag_ms, silent = progress.lag(config.limits.silent_slot_ms)
    now = clock.monotonic()
    masters = {p.member.slot: p for p in peers.all() if p.member.role == "master"}
    return {
        "name": config.name,
        "role": config.role,
        "slot": config.slot,
        "url": config.url,
        "vector": shown(progress.vector),
        "lag_ms": None if lag_ms is None else round(lag_ms, 1),
        "silent": {slot: round(age) for slot, age in silent.items()},
        "slots": {
            slot: {
                "lag_ms": None if age is None else round(age, 1),
                "lag_events": _behind(progress.vector, masters.get(slot)),
            }
            for slot, age in progress.ages_ms().items()
        },
        "board": _board(role),
        "queue_jobs": writer.waiting_jobs,
        "loop_late_ms": round(peers.load_ms, 1),
        "applier_share_max": config.limits.applier_share_max,
        "caught_up_events": fetcher.events,
        "peers": [_peer(peers, peer, now) for peer in peers.all()],
    }


def shown(vector: Vector) -> dict[str, int]:
    """A vector as people and programs read it."""
    return {f"{origin & (2**64 - 1):016x}": oseq for origin, oseq in sorted(vector.items())}


def _behind(own: Vector, peer: Peer | None) -> int | None:
    """How many writes the peer has that are not here."""
    if peer is None:
        return None
    return sum(max(oseq - own.get(origin, 0), 0) for origin, oseq in peer.vector.items())


def _board(role: Role) -> dict[str, Any]:
    return {
        "failing": role.publisher.failing if role.publisher is not None else None,
        "relay_failing": role.relay.failing if role.relay is not None else None,
        "reading": {
            name: {
                "next": one.position.next if one.position is not None else None,
                "end": one.end,
                "failing": one.failing,
            }
            for name, one in role.appliers.items()
        },
    }


def _peer(peers: Peers, peer: Peer, now: float) -> dict[str, Any]:
    return {
        "name": peer.member.name,
        "role": peer.member.role,
        "slot": peer.member.slot,
        "url": peer.member.url,
        "live": peers.is_live(peer),
        "heard_ms": None if peer.heard is None else round((now - peer.heard) * 1000),
        "rtt_ms": round(peer.rtt_s * 1000, 2),
    }
