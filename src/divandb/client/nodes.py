"""The nodes that a client knows, how far they are, and which one is asked. Pure.

    reads    the closest replica; a master counts as farther than it is
    writes   the closest master; a replica passes them on

Nodes that have answered a probe go before the URLs that the client was given, these before nodes
that were never reached: what the members call each other may mean nothing where the client is.
Those whose view is old, that the cluster believes dead, or that failed a moment ago come last.
"""

import dataclasses
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from divandb.client.options import Options
from divandb.client.wire import Kind
from divandb.clock import Clock
from divandb.closest import Candidate, Closest, averaged, is_away

MASTER = "master"
REPLICA = "replica"


@dataclasses.dataclass
class Node:
    """A member, or a URL that was given."""

    name: str
    url: str
    role: str = ""
    """``master``, ``replica``; nothing is known of a URL that was given."""
    slot: str = ""
    zone: str = ""
    is_live: bool = True
    """Does the cluster believe that it lives?"""
    rtt_s: float | None = None
    """Average of what probes took."""
    lag_ms: float | None = None
    """How old its view may be, as it last said; infinite: it does not know itself."""
    failures: int = 0
    """In a row."""
    down_until: float = -math.inf

    @property
    def is_given(self) -> bool:
        """Was it given as a URL?"""
        return not self.role


class Nodes:
    """All of them."""

    def __init__(self, urls: Sequence[str], options: Options, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()
        self._given = {url: Node(url, url) for url in urls}
        self._members: dict[str, Node] = {}
        self._closest = {Kind.READ: Closest(), Kind.WRITE: Closest()}
        self.is_refresh_due = True
        """Should somebody look who the members are?"""

    def all(self) -> list[Node]:
        """Members, and the URLs that were given if they are not members' own."""
        with self._lock:
            return self._all()

    def _all(self) -> list[Node]:
        own = {node.url for node in self._members.values()}
        return [*self._members.values(), *(n for n in self._given.values() if n.url not in own)]

    def members(self) -> list[Node]:
        """What is known of the members, in the order of their names."""
        with self._lock:
            return [dataclasses.replace(self._members[name]) for name in sorted(self._members)]

    def learn(self, told: Iterable[dict[str, Any]]) -> None:
        """These are the members now."""
        with self._lock:
            before, self._members = self._members, {}
            for one in list(told)[: self._options.nodes_max]:
                name, url = str(one["name"]), str(one["url"]).rstrip("/")
                if not url:
                    continue
                node = before.get(name)
                if node is None or node.url != url:
                    known = self._given.get(url)
                    node = Node(name, url, rtt_s=known.rtt_s if known else None)
                node.role, node.slot = str(one["role"]), str(one["slot"])
                node.zone, node.is_live = str(one.get("zone", "")), bool(one.get("live", True))
                self._members[name] = node
            self.is_refresh_due = False

    # What is seen of them

    def probed(self, node: Node, took_s: float) -> None:
        """It answered a probe."""
        with self._lock:
            node.rtt_s = averaged(node.rtt_s, took_s)
            self._is_well(node)

    def answered(self, node: Node, lag: str | None) -> None:
        """It answered; ``lag`` is what its ``Divan-Lag`` said."""
        with self._lock:
            self._is_well(node)
            if lag is not None:
                node.lag_ms = float(lag) if lag.isascii() and lag.isdigit() else math.inf

    def _is_well(self, node: Node) -> None:
        node.failures, node.down_until, node.is_live = 0, -math.inf, True

    def failed(self, node: Node) -> None:
        """It did not answer: leave it out for a while."""
        with self._lock:
            rest_s = self._options.down_s_min * 2 ** min(node.failures, 16)
            node.failures += 1
            node.down_until = self._clock.monotonic() + min(rest_s, self._options.down_s_max)
            self.is_refresh_due = True

    # Which one

    def order(self, kind: Kind, max_staleness_ms: int | None = None) -> list[Node]:
        """Whom to ask, one after the other."""
        with self._lock:
            return self._order(kind, max_staleness_ms)

    def _order(self, kind: Kind, max_staleness_ms: int | None) -> list[Node]:
        now = self._clock.monotonic()
        good: dict[str, Node] = {}
        later: list[list[Node]] = [[] for _ in range(5)]
        for node in self._all():
            if node.down_until > now:
                later[4].append(node)
            elif not node.is_live:
                later[3].append(node)
            elif not node.is_given and node.rtt_s is None:
                later[2].append(node)
            elif not self._is_fit(node, kind, max_staleness_ms):
                later[1].append(node)
            elif node.is_given and self._members:
                later[0].append(node)
            else:
                good[node.name] = node
        names = self._closest[kind].order(self._candidate(one, kind) for one in good.values())
        rest = [node for group in later for node in sorted(group, key=self._distance)]
        return [*(good[name] for name in names), *rest]

    def _is_fit(self, node: Node, kind: Kind, max_staleness_ms: int | None) -> bool:
        """Is it a master for a write, and fresh enough for a read?"""
        if kind is Kind.WRITE:
            return node.role != REPLICA
        limit = self._options.lag_ms_max if max_staleness_ms is None else max_staleness_ms
        return node.lag_ms is None or node.lag_ms <= limit or node.role == MASTER

    def _candidate(self, node: Node, kind: Kind) -> Candidate:
        rtt_s = node.rtt_s
        if rtt_s is not None and kind is Kind.READ and node.role == MASTER:
            rtt_s += self._options.spare_masters_ms / 1000
        return Candidate(node.name, is_away(self._options.zone, node.zone), rtt_s)

    def _distance(self, node: Node) -> tuple[float, bool, float, str]:
        away = is_away(self._options.zone, node.zone)
        rtt_s = math.inf if node.rtt_s is None else node.rtt_s
        return max(node.down_until, 0.0), away, rtt_s, node.name
