"""What goes wrong: each class is one kind of misfortune, and any of them at once make a run.

``begin`` lets it happen and says how it ends; ``None`` where there was nobody to hit. A fault that
another one has ended early, or made worse, ends without harm.
"""

import random
from collections.abc import Callable
from typing import Any

from tests.sim.client import Client, Unanswered
from tests.sim.cluster import Cluster
from tests.sim.node import COMMIT_S_MAX, Node

End = Callable[[], None]


def nothing() -> None:
    """It is over at once."""


class Fault:
    """One kind. ``every_s``: between two of them, on average; ``lasts_s``: at most."""

    every_s = 10.0
    lasts_s = 5.0

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        self.c = c
        self.rng = rng

    def begin(self) -> End | None:
        """Let it happen."""
        raise NotImplementedError

    def somebody(self) -> Node | None:
        """A node that runs."""
        found = [node for node in self.c.nodes if node.up and node.process.is_running]
        return self.rng.choice(found) if found else None

    def again(self, node: Node) -> End:
        """Have a node that is down started."""
        return lambda: None if node.up else self.c.start(node)


# The network


class _Share(Fault):
    """A share of what is sent fares badly."""

    knob = ""
    shares: tuple[float, ...] = (0.02, 0.1)

    def begin(self) -> End | None:
        setattr(self.c.faults, self.knob, self.rng.choice(self.shares))
        return lambda: setattr(self.c.faults, self.knob, 0.0)


class Drops(_Share):
    """Requests that are never carried out."""

    knob = "requests_lost"


class DropsAnswers(_Share):
    """Requests that are carried out, and nobody learns of it."""

    knob = "replies_lost"


class Duplicates(_Share):
    """Requests that are carried out a second time, later."""

    knob = "requests_doubled"


class Reorders(_Share):
    """Messages that are overtaken by those after them."""

    knob = "slow"


class Delays(Fault):
    """All messages take longer."""

    def begin(self) -> End | None:
        faults, before = self.c.faults, self.c.faults.delay_s
        faults.delay_s = self.rng.choice([0.02, 0.1, 0.3])

        def end() -> None:
            faults.delay_s = min(before, 0.02)

        return end


class Partition(Fault):
    """The nodes fall into two parts that do not reach each other."""

    lasts_s = 10.0

    def begin(self) -> End | None:
        one, other = _halves(self.c.nodes, self.rng)
        return self.c.network.cut_for_now({frozenset((a.name, b.name)) for a in one for b in other})


class OneWay(Fault):
    """What one part sends does not come to the other, though it hears that."""

    lasts_s = 10.0

    def begin(self) -> End | None:
        one, other = _halves(self.c.nodes, self.rng)
        return self.c.network.cut_one_way({(a.name, b.name) for a in one for b in other})


def _halves(nodes: list[Node], rng: random.Random) -> tuple[list[Node], list[Node]]:
    if len(nodes) < 2:
        return nodes, []
    shuffled = rng.sample(nodes, len(nodes))
    size = rng.randrange(1, len(nodes))
    return shuffled[:size], shuffled[size:]


# Processes


class Crash(Fault):
    """A process is killed, and started again some time later."""

    lasts_s = 8.0

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        node.crash()
        return self.again(node)


class Restart(Fault):
    """A process is killed, and at once there again."""

    def begin(self) -> End | None:
        node = self.somebody()
        if node is not None:
            node.restart()
        return nothing


class CrashAfterCommit(Fault):
    """A master is killed when it has committed, before anybody hears of that."""

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        node.dies_after_commit = True

        def end() -> None:
            node.dies_after_commit = False
            self.again(node)()

        return end


class Pause(Fault):
    """SIGSTOP, and SIGCONT some time later."""

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        node.stop()
        return lambda: node.go_on() if node.up else None


class SlowNode(Fault):
    """A process gets a fifth of its time."""

    works_s = 0.02

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        process, loop, over = node.process, self.c.loop, False

        def rest() -> None:
            if not over and process.is_alive:
                process.stop()
                loop.later(self.works_s * 4, work)

        def work() -> None:
            if process.is_alive:
                process.go_on()
            if not over:
                loop.later(self.works_s, rest)

        def end() -> None:
            nonlocal over
            over = True
            if process.is_alive:
                process.go_on()

        rest()
        return end


class ClockJump(Fault):
    """A node's wall clock is set, forwards or backwards."""

    def begin(self) -> End | None:
        node = self.rng.choice(self.c.nodes)
        node.clock.offset_ms = self.rng.choice([-86_400_000, -3_600_000, -1_000, 0, 60_000])
        return nothing


# Disks


class PowerCut(Fault):
    """As a crash; what was not fsynced may be gone, torn, or have a flipped bit."""

    lasts_s = 4.0

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        node.crash(power=True)
        self.c.losses.look()
        return self.again(node)


class PowerCutOfAll(Fault):
    """The power goes everywhere at once."""

    every_s = 60.0

    def begin(self) -> End | None:
        down = [node for node in self.c.nodes if node.up]
        for node in down:
            node.crash(power=True)
        self.c.losses.look()

        def end() -> None:
            for node in down:
                self.again(node)()

        return end


class FullDisk(Fault):
    """Nothing more can be written for a while."""

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        node.platter.is_full = True

        def end() -> None:
            node.platter.is_full = False

        return end


class SlowDisk(Fault):
    """A commit takes up to half a second."""

    def begin(self) -> End | None:
        node = self.rng.choice(self.c.nodes)
        node.commit_s_max = 0.5

        def end() -> None:
            node.commit_s_max = COMMIT_S_MAX

        return end


class LostFolder(Fault):
    """A node's data folder is gone."""

    every_s = 25.0

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        node.crash()
        node.lose_file()
        self.c.losses.disk_lost(node)
        return self.again(node)


class RolledBack(Fault):
    """A node's disk is put back to what it held some time before."""

    every_s = 25.0
    lasts_s = 15.0

    def begin(self) -> End | None:
        node = self.somebody()
        if node is None:
            return None
        earlier = node.platter.image()

        def end() -> None:
            if not node.up:
                return
            node.crash()
            node.platter.put_back(earlier)
            self.c.losses.disk_lost(node)
            self.c.start(node)

        return end


# The board


class BoardOutage(Fault):
    """The board is away."""

    lasts_s = 15.0

    def begin(self) -> End | None:
        board = self.c.board
        board.up = False

        def end() -> None:
            board.up = True

        return end


class BoardOutOfReach(Fault):
    """A node does not reach the board."""

    lasts_s = 10.0

    def begin(self) -> End | None:
        name = self.rng.choice(self.c.nodes).name
        return self.c.network.cut_for_now({frozenset((name, self.c.board.name))})


class BadBoard(Fault):
    """Batches are torn, stored late, or stored and not acknowledged."""

    def begin(self) -> End | None:
        faults = self.c.faults
        faults.torn_batches, faults.late_batches = 0.1, 0.05
        faults.lost_answers = 0.1

        def end() -> None:
            faults.torn_batches = faults.late_batches = faults.lost_answers = 0.0

        return end


class FullBoard(Fault):
    """A slot's board takes nothing."""

    def begin(self) -> End | None:
        board = self.c.board
        board.refuses = board.replicas(self.rng.choice(self.c.masters).member.slot)

        def end() -> None:
            board.refuses = ""

        return end


class BoardTruncation(Fault):
    """Retention removes all but the last few messages."""

    every_s = 20.0

    def begin(self) -> End | None:
        self.c.board.truncate(keep=self.rng.randrange(10))
        self.c.losses.board_lost()
        return nothing


class BoardForgets(Fault):
    """All topics are deleted and made again."""

    every_s = 30.0

    def begin(self) -> End | None:
        self.c.board.forget()
        self.c.losses.board_lost()
        return nothing


class BoardRolledBack(Fault):
    """The board loses the end of its logs, and says nothing of it."""

    every_s = 30.0

    def begin(self) -> End | None:
        self.c.board.lose_end(self.rng.randrange(1, 10))
        self.c.losses.board_lost()
        return nothing


# Members


class NewReplica(Fault):
    """A group gets another replica, which begins with nothing."""

    every_s = 30.0
    members_max = 14

    def begin(self) -> End | None:
        if len(self.c.nodes) < self.members_max and self.c.board.up:
            self.c.join(self.rng.choice(self.c.masters).member.slot)
        return nothing


class NewMaster(NewReplica):
    """The cluster gets another slot."""

    every_s = 60.0

    def begin(self) -> End | None:
        if len(self.c.nodes) < self.members_max and self.c.board.up:
            self.c.join("")
        return nothing


class RemovedNode(Fault):
    """A node is removed for good, whether it lives or not."""

    every_s = 12.0

    def begin(self) -> End | None:
        groups = [self.c.group(slot) for slot in sorted({n.member.slot for n in self.c.nodes})]
        found = [node for group in groups if len(group) > 2 for node in group]
        if not found or self.c.removing:
            return None
        gone = self.rng.choice(found)
        operator = Client(self.c, f"operator{len(self.c.network.sites)}")

        async def ask(node: Node) -> int:
            body = {"node": gone.name, "force": True}
            try:
                return (await operator.post(node, "/_divan/remove", body)).status
            except Unanswered:
                return 0

        self.c.remove(gone, ask)
        return nothing


ALL: tuple[type[Fault], ...] = (
    Drops, DropsAnswers, Duplicates, Reorders, Delays, Partition, OneWay,
    Crash, Restart, CrashAfterCommit, Pause, SlowNode, ClockJump,
    PowerCut, PowerCutOfAll, FullDisk, SlowDisk, LostFolder, RolledBack,
    BoardOutage, BoardOutOfReach, BadBoard, FullBoard, BoardTruncation, BoardForgets,
    BoardRolledBack, NewReplica, NewMaster, RemovedNode,
)  # fmt: skip


class Weather:
    """Faults of several kinds, each coming and going by itself, until it ``clears``."""

    def __init__(self, c: Cluster, rng: random.Random, kinds: tuple[type[Fault], ...]) -> None:
        self._c = c
        self._rng = rng
        self._ends: dict[int, End] = {}
        self._count = 0
        self._is_over = False
        self.struck: dict[str, int] = {}
        """How often each kind has happened."""
        for kind in kinds:
            self._wait(kind(c, rng))

    def _wait(self, fault: Fault) -> None:
        pause_s = self._rng.expovariate(1 / fault.every_s)
        self._c.loop.later(pause_s, self._begin, fault)

    def _begin(self, fault: Fault) -> None:
        if self._is_over:
            return
        kind = type(fault).__name__
        end = self._tried(fault.begin)
        self._c.note(f"begins {kind}", end is not None)
        if end is None:
            self._wait(fault)
            return
        self.struck[kind] = self.struck.get(kind, 0) + 1
        self._count += 1
        self._ends[self._count] = end
        lasts_s = self._rng.random() * fault.lasts_s
        self._c.loop.later(lasts_s, self._end, fault, self._count)

    def _end(self, fault: Fault, number: int) -> None:
        end = self._ends.pop(number, None)
        if end is not None:
            self._tried(end)
            self._c.note(f"ends {type(fault).__name__}", True)
            self._wait(fault)

    def _tried(self, step: Callable[[], Any]) -> Any:
        """What fails in here is no part of the weather."""
        try:
            return step()
        except Exception as bug:
            self._c.bugs.append(bug)
            return None

    def clear(self) -> None:
        """Everything that went wrong ends."""
        self._is_over = True
        ends, self._ends = self._ends, {}
        for end in ends.values():
            self._tried(end)
        self._c.mend()
