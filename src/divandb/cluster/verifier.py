"""Anti-entropy: nodes see for themselves, all the time, whether they hold the same, and mend it.

Each node compares itself with one other every ``verify_every_s``: a replica with its master, a
master with the other masters and its replicas in turn. Whoever finds that it differs takes what it
lacks; it changes nothing there, and says that it has found something, so that the other looks for
itself.

    all databases at once   one number; nearly always there is no more to it
    one database            digests, without what either may have later
    ranges of it            only where these differ: rows are read, on both sides
    documents               merged, or replaced where they are damaged (``store.mending``)

Digests are those that the writer keeps; ``scanner`` sees to it that they are those of the rows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from divandb.clock import Clock
from divandb.cluster import proving
from divandb.cluster.findings import Finding, Findings, Key
from divandb.cluster.peers import Peer, Peers
from divandb.cluster.proving import (
    PROOF,
    Doubt,
    Everything,
    EverythingAnswer,
    Owed,
    States,
    StatesAnswer,
    Stretch,
    StretchAnswer,
    Whole,
    WholeAnswer,
)
from divandb.cluster.scanner import Scanner
from divandb.cluster.witness import STATES_MAX, reader
from divandb.config import Config
from divandb.errors import Busy
from divandb.governor import Pace
from divandb.link import LinkBroken
from divandb.store import changes, mending, proofs
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.mending import Outcome
from divandb.store.proofs import Claim, Held
from divandb.store.spares import Spares
from divandb.telemetry import Log
from divandb.trouble import Trouble
from divandb.vector import Vector, covers, in_hex

ANSWER_BYTES_MAX = 512 * 2**20
"""One document's state may be as large as its leaves and bodies are."""
WALK_AGAIN_S = 3600.0
"""What a walk through a database could not mend is not looked for again before."""
NOTICED_S_MIN = 1.0
"""Between two comparisons, however many nodes say that they differ."""
SETTLE_TRIES = 10
SETTLE_S = 0.5
"""A comparison that somebody waits for is made so often again, so long after, where nodes are too
far apart for one.
"""
OPEN_SHOWN_MAX = 5
OPEN_TOLD_MAX = 1000

Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]
Offload = Callable[..., Awaitable[Any]]

SAME = "same"
DIFFERS = "differs"
UNDECIDED = "undecided"
"""One of the two is too far behind the other, or has not heard of the database yet."""


Answer = TypeVar("Answer", EverythingAnswer, WholeAnswer, StretchAnswer, StatesAnswer)


class Verdict(msgspec.Struct, frozen=True):
    """One database as compared with one node: up to ``vector``, but for ``left_out`` documents
    that hold later writes.
    """

    state: str
    vector: dict[int, int]
    left_out: int = 0


class Comparison(msgspec.Struct):
    """A node as compared with another; ``fault``: why it could not be."""

    peer: str
    databases: dict[str, Verdict] = {}
    fault: str | None = None


class Run(msgspec.Struct):
    """What was asked for with `divandb verify`."""

    number: int
    step: str
    since: int
    """Findings before it."""
    running: bool = True
    rows: int | None = None
    compared: list[Comparison] = []
    fault: str | None = None


class _View(msgspec.Struct, frozen=True):
    """A database here, at one moment."""

    vector: dict[int, int]
    digest: bytes
    changed: list[Held]


class Verifier:
    """Compares this node with others; on the event loop."""

    def __init__(
        self, config: Config, spares: Spares, peers: Peers, scanner: Scanner, findings: Findings,
        execute: Execute, offload: Offload, pace: Pace, clock: Clock, log: Log,
    ) -> None:  # fmt: skip
        self._pace = pace
        self._config = config
        self._limits = config.limits
        self._spares = spares
        self._peers = peers
        self._scanner = scanner
        self._findings = findings
        self._execute = execute
        self._offload = offload
        self._clock = clock
        self._log = log
        self._trouble = Trouble(log, "comparing with other nodes fails")
        self._due = asyncio.Event()
        self._noticed: dict[str, None] = {}
        """Nodes that say that they differ."""
        self._one = asyncio.Lock()
        self._tried: dict[str, float] = {}
        self._proved: dict[str, float] = {}
        self._owed: dict[tuple[str, str], Owed] = {}
        self._walked: dict[tuple[str, str, int], tuple[bytes, float]] = {}
        self._begun = clock.monotonic()
        self._run = Run(0, "", 0, running=False)
        self._running: asyncio.Task[None] | None = None
        scanner.damage_found = self._due.set

    # In the background

    async def run(self) -> None:
        """Compare, mend and read rows until cancelled."""
        first_s = self._limits.verify_every_s * _fraction(self._config.name)
        scanning = asyncio.create_task(self._scanner.run(first_s))
        try:
            await self._wait(first_s)
            while True:
                await self._round()
                await self._wait(self._limits.verify_every_s)
        finally:
            scanning.cancel()
            if self._running is not None:
                self._running.cancel()

    async def _wait(self, wait_s: float) -> None:
        least_s = min(NOTICED_S_MIN, wait_s)
        await asyncio.sleep(least_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._due.wait(), wait_s - least_s)
        self._due.clear()

    async def _round(self) -> None:
        with self._trouble.attempt():
            await self._mend_damaged()
            peer = self._next()
            if peer is not None:
                await self.compare(peer)

    def notice(self, name: str) -> None:
        """A node has found that it differs from us: look at it soon."""
        self._noticed[name] = None
        self._due.set()

    def notice_group(self) -> None:
        """This node owns its slot now: see soon whether it holds what its group holds."""
        for peer in self._peers.group():
            self.notice(peer.member.name)

    def _next(self) -> Peer | None:
        partners = {peer.member.name: peer for peer in self._partners()}
        noticed, self._noticed = self._noticed, {}
        for name in noticed:
            peer = next((p for p in self._peers.live() if p.member.name == name), None)
            if peer is not None:
                self._noticed = {other: None for other in noticed if other != name}
                if self._noticed:
                    self._due.set()
                return peer
        found = sorted(partners, key=lambda name: (self._tried.get(name, -1.0), name))
        return partners[found[0]] if found else None

    def _partners(self) -> list[Peer]:
        """Live nodes that this one compares itself with."""
        masters, slot = self._peers.masters(), self._config.slot
        tenure = self._peers.tenure
        if not tenure.is_owner:
            own = [peer for peer in masters if peer.member.slot == slot]
            return own or masters[:1]
        return masters + [
            peer
            for peer in self._peers.live()
            if peer.member.slot == slot and not tenure.owns(peer.member)
        ]

    # Comparing

    async def compare(self, peer: Peer) -> Comparison:
        """See whether we hold what this node holds, and take what we should."""
        name = peer.member.name
        async with self._one:
            self._tried[name] = self._clock.monotonic()
            began = self._clock.monotonic()
            found = Comparison(name)
            await self._compare(peer, found)
            self._findings.totals.comparisons += 1
            if all(one.state == SAME for one in found.databases.values()):
                self._proved[name] = began
            return found

    async def _compare(self, peer: Peer, found: Comparison) -> None:
        async with reader(self._spares, self._offload) as connection:
            vector, claims = await self._offload(_claims, connection)
            answer = await self._everything(peer, claims)
            common = proving.common(vector, answer.vector)
            theirs = claims if answer.same else answer.claims
            standing = proving.standing(claims, theirs)
            self._forget(peer.member.name, standing.owed, standing.differ)
            here = {claim.name: claim for claim in claims}
            there = {claim.name: claim for claim in theirs}
            for name in standing.same:
                self._findings.note_same(name, peer.member.name)
                if not here[name].dropped:
                    found.databases[name] = Verdict(SAME, common)
            for name in standing.differ:
                found.databases[name] = await self._whole(
                    peer, connection, here[name], answer.vector
                )
            for name in standing.owed:
                state = await self._take_owed(peer, there[name], here.get(name), vector, answer)
                found.databases[name] = Verdict(state, common)
            for name in standing.ahead:
                found.databases[name] = Verdict(UNDECIDED, common)
                if covers(answer.vector, vector):
                    await self._ask(peer, Doubt(name, here[name].generation))

    def _forget(self, peer: str, owed: Sequence[str], differ: Sequence[str]) -> None:
        """What was noted of this node's databases, and does not matter any more."""
        self._owed = {
            place: one for place, one in self._owed.items() if place[0] != peer or place[1] in owed
        }
        self._walked = {
            place: one
            for place, one in self._walked.items()
            if place[0] != peer or place[1] in differ
        }

    async def _everything(self, peer: Peer, claims: Sequence[Claim]) -> EverythingAnswer:
        question = Everything(proving.total_of(claims))
        answer = proving.decode_everything(await self._ask(peer, question))
        answer = self._with_whole_vector(answer)
        more = answer
        while more.more and more.claims:
            question = Everything(b"", more.claims[-1].name)
            more = proving.decode_everything(await self._ask(peer, question))
            answer.claims.extend(more.claims)
        return answer

    async def _whole(
        self, peer: Peer, connection: Connection, claim: Claim, theirs: Vector
    ) -> Verdict:
        """One database, with digests of one moment on each side."""
        view: _View | None = await self._offload(_view, connection, claim, theirs)
        if view is None:
            return Verdict(UNDECIDED, {})
        try:
            keys = [one.key for one in view.changed]
            told = self._peers.closings.compact(view.vector)
            question = Whole(claim.name, claim.generation, told, keys)
            answer = proving.decode_whole(await self._ask(peer, question))
            answer = self._with_whole_vector(answer)
            own = {one.key: one.number for one in view.changed}
            missing = [one.key for one in answer.changed if one.key not in own]
            more = await self._offload(_held, connection, claim, missing)
        finally:
            await self._offload(_end, connection)
        own |= {one.key: one.number for one in more}
        common = proving.common(view.vector, answer.vector)
        if answer.digest is None:
            return Verdict(UNDECIDED, common)
        left_out = len({*own, *missing})
        difference = proving.apart(view.digest, own, answer)
        if difference is None:
            self._findings.note_same(claim.name, peer.member.name)
            return Verdict(SAME, common, left_out)
        await self._walk(peer, connection, claim, difference)
        return Verdict(DIFFERS, common, left_out)

    async def _take_owed(
        self, peer: Peer, theirs: Claim, mine: Claim | None, vector: Vector,
        answer: EverythingAnswer,
    ) -> str:  # fmt: skip
        """A database that is there and not here: does that have to be so?"""
        place = (peer.member.name, theirs.name)
        owed = self._owed.get(place)
        if owed is None or (owed.generation, owed.dropped) != (theirs.generation, theirs.dropped):
            owed = Owed(answer.vector, theirs.generation, theirs.dropped)
            self._owed[place] = owed
            self.notice(peer.member.name)
        if not owed.is_overdue(vector, mine):
            return UNDECIDED
        del self._owed[place]
        question = States(theirs.name, theirs.generation, [])
        states = proving.decode_states(await self._ask(peer, question))
        now_ms = self._clock.wall_ms()
        await self._execute(
            lambda ledger: mending.settle_database(ledger, states.database, now_ms), 0
        )
        self._findings.note_database(theirs.name, peer.member.name)
        self.notice(peer.member.name)
        return DIFFERS

    # Finding what differs

    async def _walk(
        self, peer: Peer, connection: Connection, claim: Claim, difference: bytes
    ) -> None:
        """Go through a database range by range, and mend what differs."""
        place = (peer.member.name, claim.name, claim.generation)
        known, at = self._walked.get(place, (b"", 0.0))
        if known == difference and self._clock.monotonic() - at < WALK_AGAIN_S:
            return
        suspects, after = 0, ""
        upto: str | None = after
        while upto is not None:
            began = self._clock.monotonic()
            keys, upto = await self._range(peer, connection, claim, after)
            suspects += len(keys)
            await self._mend(peer, claim.name, claim.generation, keys, {})
            after = upto or after
            took_s = self._clock.monotonic() - began
            await self._pace(took_s)
        self._walked[place] = (difference, self._clock.monotonic())
        if not suspects:
            self._scanner.doubt(claim.name, claim.generation)
            await self._ask(peer, Doubt(claim.name, claim.generation))
        self.notice(peer.member.name)  # is it the same now?

    async def _range(
        self, peer: Peer, connection: Connection, claim: Claim, after: str
    ) -> tuple[list[str], str | None]:
        """The keys behind ``after`` that differ, in one range; and its end, if there is more."""
        vector, held, upto = await self._offload(_stretch, connection, claim, after)
        told = self._peers.closings.compact(vector)
        question = Stretch(
            claim.name, claim.generation, told, after, upto, proving.total_held(held)
        )
        answer = proving.decode_stretch(await self._ask(peer, question))
        answer = self._with_whole_vector(answer)
        if not answer.known:
            return [], None
        if answer.same:
            return [], answer.upto
        return proving.differing(held, vector, answer), answer.upto

    # Mending

    async def _mend(
        self, peer: Peer, name: str, generation: int, keys: Sequence[str],
        needs: Mapping[str, Vector],
    ) -> None:  # fmt: skip
        """Ask for the states of these, and take from them what is lacking here."""
        left = list(keys)
        while left:
            question = States(name, generation, left[:STATES_MAX], differs=not needs)
            answer = proving.decode_states(await self._ask(peer, question))
            answer = self._with_whole_vector(answer)
            step = partial(
                mending.settle, name=name, generation=generation, messages=answer.events,
                theirs=answer.vector, needs=needs,
            )  # fmt: skip
            found: dict[str, Outcome] = await self._execute(step, sum(map(len, answer.events)))
            self._findings.note_outcomes(name, generation, found, peer.member.name)
            asked, left = left[: answer.looked], left[max(answer.looked, 1) :]
            for key in asked:
                if found.get(key, Outcome.SAME) is Outcome.SAME and key not in needs:
                    self._findings.note_elsewhere(name, key, peer.member.name)

    async def _mend_damaged(self) -> None:
        """Ask whoever lives for documents whose rows are damaged here."""
        damaged = dict(self._findings.damaged)
        for peer in self._peers.nearest() if damaged else ():
            groups: dict[tuple[str, int], list[Key]] = {}
            for key in damaged:
                if key in self._findings.damaged:
                    groups.setdefault(key[:2], []).append(key)
            for (name, generation), keys in groups.items():
                needs = {key[2]: damaged[key].needs for key in keys}
                with suppress(LinkBroken, msgspec.MsgspecError):
                    await self._mend(peer, name, generation, [key[2] for key in keys], needs)

    def _with_whole_vector(self, answer: Answer) -> Answer:
        """Vectors travel without closed origins."""
        whole = self._peers.closings.expand(answer.vector)
        return msgspec.structs.replace(answer, vector=whole)

    async def _ask(self, peer: Peer, question: proving.Question) -> bytes:
        """A node's answer; raises ``LinkBroken``."""
        reply = await peer.link.ask(
            "POST", PROOF, proving.encode(question), body_bytes_max=ANSWER_BYTES_MAX,
            repeatable=True,
        )  # fmt: skip
        if reply.status != 200:
            raise LinkBroken(f"{peer.member.name} answered {reply.status}", sent=True)
        return reply.body

    # For those who ask

    def begin(self, step: str) -> int:
        """Read all ``rows``, or compare with all ``nodes``, now; the run's number. Raises
        ``Busy`` while something like that is under way.
        """
        if self._run.running:
            raise Busy("This node is at it already.")
        number = self._run.number + 1
        since = self._run.since if step == "nodes" else self._findings.count
        self._run = Run(number, step, since)
        self._running = asyncio.create_task(self._carry_out(self._run))
        return number

    async def _carry_out(self, run: Run) -> None:
        try:
            if run.step == "rows":
                run.rows = await self._scanner.read_all()
            else:
                run.compared = [await self._alone()]
                for peer in self._partners():
                    run.compared.append(await self._patiently(peer))
        except Exception as fault:
            run.fault = repr(fault)
        finally:
            run.running = False
            self._due.set()

    async def _alone(self) -> Comparison:
        """This node and itself: which databases there are."""
        async with reader(self._spares, self._offload) as connection:
            vector, claims = await self._offload(_claims, connection)
        found = {claim.name: Verdict(SAME, vector) for claim in claims if not claim.dropped}
        return Comparison(self._config.name, found)

    async def _patiently(self, peer: Peer) -> Comparison:
        """Compare again while it cannot be said."""
        found = Comparison(peer.member.name)
        for _ in range(SETTLE_TRIES):
            try:
                found = await self.compare(peer)
            except (LinkBroken, msgspec.MsgspecError) as fault:
                found.fault = str(fault)
            states = [one.state for one in found.databases.values()]
            if found.fault is None and UNDECIDED not in states:
                break
            await asyncio.sleep(SETTLE_S)
        return found

    def report(self) -> dict[str, Any]:
        """The last run, as JSON."""
        run = self._run
        return {
            "name": self._config.name,
            "role": self._peers.tenure.role,
            "run": run.number,
            "step": run.step,
            "running": run.running,
            "fault": run.fault,
            "rows": run.rows,
            "compared": [
                {
                    "peer": one.peer,
                    "fault": one.fault,
                    "databases": {
                        name: {
                            "state": verdict.state,
                            "vector": in_hex(self._peers.closings.compact(verdict.vector)),
                            "left_out": verdict.left_out,
                        }
                        for name, verdict in one.databases.items()
                    },
                }
                for one in run.compared
            ],
            "findings": _as_json(self._findings.since(run.since)),
            "open": self._findings.names_open(OPEN_TOLD_MAX),
            "peers": [peer.member.name for peer in self._peers.all()],
        }

    @property
    def proof_age_s(self) -> float:
        """How long ago this node was last seen to hold what those hold with whom it compares
        itself, the least recent of them; without any, how long ago it was started; 0 for a node
        that has nobody to compare itself with.
        """
        if not self._peers.all():
            return 0.0
        partners = [peer.member.name for peer in self._partners()]
        masters = {peer.member.name for peer in self._peers.masters()}
        must = [name for name in partners if name in masters] or partners
        last = [self._proved.get(name, self._begun) for name in must]
        oldest = min(last) if last else max([self._begun, *self._proved.values()])
        return self._clock.monotonic() - oldest

    def status(self) -> dict[str, Any]:
        """For ``divandb status``."""
        return {
            "last_proof_age_s": round(self.proof_age_s, 1),
            "failing": self._scanner.failing,
            "open": self._findings.open,
            "examples": self._findings.names_open(OPEN_SHOWN_MAX),
            **msgspec.to_builtins(self._findings.totals),
        }

    def numbers(self) -> dict[str, float]:
        """Metrics by name, with the unit in the name."""
        totals = self._findings.totals
        passed = self._scanner.passed
        since = self._begun if passed is None else passed
        return {
            "verify_last_proof_age_seconds": self.proof_age_s,
            "verify_last_rows_age_seconds": self._clock.monotonic() - since,
            "verify_comparisons_total": totals.comparisons,
            "verify_checked_rows_total": totals.checked_rows,
            "verify_divergent_documents_total": totals.divergent_documents,
            "verify_mended_documents_total": totals.mended_documents,
            "verify_open_documents": self._findings.open,
            "verify_corrected_digests_total": totals.corrected_digests,
        }


def _as_json(found: Iterable[Finding]) -> list[Any]:
    return [msgspec.to_builtins(one) for one in found]


def _fraction(name: str) -> float:
    """Between a half and one, another for each node: so that they do not all ask at once."""
    return 0.5 + blake2b(name.encode(), digest_size=1).digest()[0] / 512


# On another thread, each in one transaction of the connection


def _claims(connection: Connection) -> tuple[dict[int, int], list[Claim]]:
    with connection:
        found = (changes.vector(connection), proofs.claims(connection))
    return found


def _view(connection: Connection, claim: Claim, theirs: Vector) -> _View | None:
    """Leaves its transaction open, for ``_held``; ``_end`` closes it."""
    connection.execute("BEGIN")
    vector = changes.vector(connection)
    database = proofs.living(connection, claim.name, claim.generation)
    changed = None if database is None else proofs.changed(connection, database, theirs)
    if database is None or changed is None:
        _end(connection)
        return None
    return _View(vector, database.digest, changed)


def _held(connection: Connection, claim: Claim, keys: Sequence[str]) -> list[Held]:
    database = proofs.living(connection, claim.name, claim.generation)
    return proofs.held(connection, database, keys) if database is not None else []


def _end(connection: Connection) -> None:
    connection.execute("ROLLBACK")


def _stretch(
    connection: Connection, claim: Claim, after: str
) -> tuple[dict[int, int], list[Held], str | None]:
    with connection:
        vector = changes.vector(connection)
        database = proofs.living(connection, claim.name, claim.generation)
        held, upto = (
            ([], None) if database is None else proofs.stretch(connection, database, after, None)
        )
    return vector, held, upto
