"""A whole cluster in one process, from a seed: masters, replicas, board and network."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from divandb.cluster import trust
from divandb.commands import DropDatabase
from divandb.config import MASTER, REPLICA, Limits, Member
from divandb.store.ledger import Changes
from tests.sim.board import BOARD, SimBoard
from tests.sim.checkers import ALL, Checker, DropsHitWhatTheyMeant, OneOwner
from tests.sim.history import History
from tests.sim.losses import Losses
from tests.sim.network import Faults, Network
from tests.sim.node import SECRET, Node
from tests.sim.world import Process, SimLoop

LOOK_S = 0.05
START_AGAIN_S = 1.0
CHECK_S = 0.2
"""So often, at most, it is checked what shows without a commit."""
STEADY = Limits(failover_ms=600_000)
"""Slots keep their owners, whatever happens to these."""


class Cluster:
    """Some masters with their replicas, a board, and links between all of them."""

    def __init__(
        self, loop: SimLoop, folder: Path, seed: int, *, masters: int = 3, replicas: int = 0,
        revs_limit: int = 1000, limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.folder = folder
        self.rng = random.Random(seed)
        self.revs_limit = revs_limit
        self.limits = limits or Limits()
        self.faults = Faults()
        self.processes: list[Process] = []
        self.bugs: list[BaseException] = []
        """Faults that a node has logged, which none should have."""
        self.violations: list[BaseException] = []
        self.history = History()
        self.trace: list[tuple[float, str, int]] = []
        """(when, who, how many writes it contains) of each commit: the same for the same seed."""
        self._looked_s = 0.0
        self.network = Network(loop, self.rng, self.faults)
        cluster = trust.keys_of(SECRET, "", "", "", is_master=False).cluster
        self.board = SimBoard(loop, self.rng, self.faults, cluster, self.network.linked)
        self.members = _members(masters, replicas)
        self.nodes = [Node(self, member, folder) for member in self.members]
        self.losses = Losses(self)
        self._joining: set[asyncio.Task[Node]] = set()
        self.removing: set[asyncio.Task[None]] = set()
        """Who is being removed."""
        self.struck: dict[str, int] = {}
        """How often each kind of fault has happened in a random run."""
        self.acts = 0
        """What clients did in it."""
        self.checkers = [make(self) for make in ALL]

    @property
    def masters(self) -> list[Node]:
        return [node for node in self.nodes if node.is_master]

    @property
    def replicas(self) -> list[Node]:
        return [node for node in self.nodes if not node.is_master]

    def group(self, slot: str) -> list[Node]:
        """A slot's nodes, the master first."""
        return [node for node in self.nodes if node.member.slot == slot]

    async def open(self) -> None:
        """Make the topics and start all nodes."""
        await self.board.arrange(self.members)
        for node in self.nodes:
            self.start(node)

    async def with_database(self, name: str) -> list[Node]:
        """Make a database; the masters, once all nodes know it."""
        await self.masters[0].create(name)
        await self.settled()
        return self.masters

    async def add_replica(self, slot: str) -> Node:
        """A new replica of a running cluster, not started yet. No name is given twice."""
        number = sum(member.slot == slot for member in self.members)
        name = f"{slot}-r{number}"
        return await self._add(Member(name, REPLICA, slot, f"http://{name}"))

    async def add_master(self) -> Node:
        """A new slot's master, not started yet."""
        name = f"m{len({member.slot for member in self.members}) + 1}"
        return await self._add(Member(name, MASTER, name, f"http://{name}"))

    def join(self, slot: str) -> None:
        """Have a new replica of this slot started, or a new master; not waited for."""
        adding = self.add_replica(slot) if slot else self.add_master()
        task = self.loop.create_task(adding)
        self._joining.add(task)
        task.add_done_callback(self._joined)

    def _joined(self, task: "asyncio.Task[Node]") -> None:
        self._joining.discard(task)
        self.start(task.result())

    def remove(self, node: Node, ask: Callable[[Node], Awaitable[int]]) -> None:
        """Have a node removed; not waited for. ``ask`` has it done by another one, and says with
        what status.
        """
        task = self.loop.create_task(self._remove(node, ask))
        self.removing.add(task)
        task.add_done_callback(self.removing.discard)

    async def _remove(self, gone: Node, ask: Callable[[Node], Awaitable[int]]) -> None:
        is_open = False
        while not is_open or gone in self.nodes:
            status = await ask(self.rng.choice([one for one in self.nodes if one is not gone]))
            if status == 200:
                self.part_with(gone)
                return
            # Who gets no answer does not know, and asks again until he does.
            is_open |= status not in (404, 410, 412)
            if not is_open:
                return
            await asyncio.sleep(1.0)

    def part_with(self, gone: Node) -> None:
        """It is no member any more: what only it had is lost, and the others are judged."""
        if gone.up:
            gone.crash()
        self.nodes.remove(gone)
        self.losses.disk_lost(gone)

    async def _add(self, member: Member) -> Node:
        self.members.append(member)
        await self.board.arrange(self.members)
        node = Node(self, self.members[-1], self.folder)
        self.nodes.append(node)
        return node

    # Misfortunes

    def start(self, node: Node) -> None:
        """Start a node that does not run; on a full disk its supervisor tries again and again."""
        if node.up:
            return
        if node.platter.is_full:
            self.loop.later(START_AGAIN_S, self.start, node)
            return
        node.start()
        self._have_checked(lambda checker: checker.started(node))

    def cut(self, *groups: list[Node] | Node) -> None:
        """Nothing passes between nodes of different groups; the board stays in reach."""
        parts = [group if isinstance(group, list) else [group] for group in groups]
        for index, part in enumerate(parts):
            for other in parts[index + 1 :]:
                self.network.cuts |= {frozenset((a.name, b.name)) for a in part for b in other}

    def cut_from_board(self, *nodes: Node) -> None:
        """These nodes do not reach the board."""
        self.network.cuts |= {frozenset((node.name, BOARD)) for node in nodes}

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.network.heal()

    def mend(self) -> None:
        """All misfortunes end: links, board, faults; whoever is down or stopped goes on."""
        delay_s = self.faults.delay_s
        self.faults.__init__(delay_s=min(delay_s, 0.05))  # type: ignore[misc]
        self.heal()
        self.board.up = True
        self.board.refuses = ""
        for node in self.nodes:
            node.platter.is_full = False
            if not node.up:
                self.start(node)
            elif not node.process.is_running:
                node.go_on()

    # Looking

    def wrote(self, node: Node, command: Any, result: Any, before: Any, after: Any) -> None:
        """A master has committed what a client asked for: from behind ``before`` up to ``after``,
        each (origin, number).
        """
        first = before[1] + 1 if before and before[0] == after[0] else 1
        self.told(OneOwner, node, after[0], first, after[1])
        self.history.committed(node, command, result, before, after)
        if isinstance(command, DropDatabase):
            dropped = self.history.writes[after[0]][-1].generation
            self.told(DropsHitWhatTheyMeant, node, command.generation, dropped)

    def committed(self, node: Node, made: Changes | None) -> None:
        """A node has committed. The loops carry on after any fault, so what is found is kept for
        whoever waits.
        """
        if made is None or made.vector is None:
            return
        self.trace.append((self.loop.time(), node.name, sum(node.ledger.vector.values())))
        asked = [one for one in self.checkers if type(one).committed is not Checker.committed]
        self._have_checked(lambda checker: checker.committed(node), asked)

    def note(self, what: str, how: object) -> None:
        """Something happened that belongs into the trace."""
        self.trace.append((self.loop.time(), what, int(bool(how))))

    def told(self, kind: type[Checker], *what: Any) -> None:
        """Clients have seen something; a checker of that kind judges it."""
        for checker in self.checkers:
            if type(checker) is kind:
                self._have_checked(lambda checker: checker.told(*what), [checker])

    def healed(self) -> None:
        """Nothing goes wrong from now on."""
        self._have_checked(lambda checker: checker.healed())

    def look(self) -> None:
        """Some time has passed."""
        if self.loop.now_s < self._looked_s + CHECK_S:
            return
        self._looked_s = self.loop.now_s
        looking = [one for one in self.checkers if type(one).looked is not Checker.looked]
        for node in self.nodes:
            if node.up and node.process.is_running:
                self._have_checked(lambda checker, node=node: checker.looked(node), looking)

    def _have_checked(
        self, step: Callable[[Checker], None], by: Sequence[Checker] | None = None
    ) -> None:
        for checker in self.checkers if by is None else by:
            try:
                step(checker)
            except Exception as violation:
                violation.add_note(f"found by {type(checker).__name__}")
                self.violations.append(violation)

    def raise_violations(self) -> None:
        """Raise the first that was found."""
        if self.violations:
            raise self.violations[0]
        if self.bugs:
            raise self.bugs[0]

    async def until(
        self, condition: Callable[[], bool], within_s: float = 120.0, look_s: float = LOOK_S
    ) -> None:
        """Let simulated time pass until something holds."""
        deadline = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > deadline:
                self.raise_violations()
                raise AssertionError(f"not within {within_s} simulated seconds: {self.describe()}")
            await asyncio.sleep(look_s)
            self.look()
        self.raise_violations()

    async def passes(self, seconds: float) -> None:
        """Let simulated time pass."""
        end = self.loop.time() + seconds
        await self.until(lambda: self.loop.time() >= end, seconds + 1)

    async def settled(self, nodes: Sequence[Node] = (), within_s: float = 120.0) -> None:
        """Until these nodes contain the same writes, with nothing left to publish; until all do."""
        await self.until(lambda: _are_settled(nodes or self.nodes), within_s)

    def finished(self) -> None:
        """Everybody has talked to everybody: look at everything once more."""
        self._have_checked(lambda checker: checker.finished())
        self.raise_violations()

    def describe(self) -> str:
        """Where everybody is, for a failure's message."""
        return "; ".join(
            f"{node.name} {sorted(node.vector.items())} {node.log.lines[-2:]}"
            if node.up else f"{node.name} down"
            for node in self.nodes
        )  # fmt: skip


def _are_settled(nodes: Sequence[Node]) -> bool:
    first = nodes[0].vector
    return all(node.up and node.vector == first for node in nodes) and not any(
        node.count("outbox") or node.count("waiting") for node in nodes
    )


def _members(masters: int, replicas: int) -> list[Member]:
    slots = [f"m{number}" for number in range(1, masters + 1)]
    found = [Member(slot, MASTER, slot, f"http://{slot}") for slot in slots]
    for slot in slots:
        for number in range(1, replicas + 1):
            name = f"{slot}-r{number}"
            found.append(Member(name, REPLICA, slot, f"http://{name}"))
    return found
