"""One replication, from its checkpoint on: to the end of the changes, or for as long as it is let.

Memory: one answer of each side, ``ANSWER_BYTES_MAX`` at most, and the groups that are written from
it. Attachments pass through in pieces.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from typing import Any

from divandb.clock import Clock, Rng
from divandb.config import Limits
from divandb.governor import Pace
from divandb.replication import batches, checkpoints
from divandb.replication.batches import Wanted
from divandb.replication.checkpoints import Counts, Seq
from divandb.replication.end import End, Fetched, TooMuch
from divandb.replication.request import Replication

QUIET_S = 1.0
"""Between two answers without changes: not every server waits for changes when it is asked to."""
IDLE_CHECKPOINT_MS = 5_000
"""A continuous one that has nothing left to do stores how far it came after this time."""


class Run:
    """A session."""

    def __init__(
        self,
        what: Replication,
        name: str,
        ends: tuple[End, End],
        clock: Clock,
        rng: Rng,
        limits: Limits,
        pace: Pace,
        went_well: Callable[[], None],
    ) -> None:
        """``ends`` are source and target; ``name`` is the replication's id. ``went_well`` is told
        of each answer of the source that was dealt with.
        """
        self._what = what
        self._name = name
        self._source, self._target = ends
        self._clock = clock
        self._limits = limits
        self._pace = pace
        self._went_well = went_well
        self._session = rng.token(16).hex()
        self._logs: list[dict[str, Any] | None] = [None, None]
        self._params, self._body = _question(what)
        self._started = self._moment()
        self._start: Seq = 0
        self._stored_at = clock.monotonic()
        self._has_rows = False
        """Did changes come since the last checkpoint?"""
        self.counts = Counts()
        self.through: Seq = 0
        """As far as it has come."""
        self.stored: Seq = 0
        """As far as the checkpoint says."""
        self.pending: int | None = None
        """Changes that are left, as the source says."""

    async def go(self) -> dict[str, Any]:
        """Replicate; the log, as `_replicate` answers it. Raises ``DivanError``. Does not return
        when it is continuous.
        """
        await self._open()
        has_written = False
        while True:
            asked = self._clock.monotonic()
            batch, limit = await self._changes()
            rows = batch["results"]
            await self._take(rows)
            self._has_rows = self._has_rows or bool(rows)
            self.through = batch.get("last_seq", self.through)
            self.pending = batch.get("pending")
            self._went_well()
            is_end = len(rows) < limit
            if is_end and not self._what.continuous:
                if not self._has_moved:
                    return self._nothing_new(has_written)
                return {"ok": True, **await self._store()}
            if self._is_due(is_end) and self._has_moved:
                await self._store()
                has_written = True
            if not rows and self._clock.monotonic() - asked < QUIET_S:
                await asyncio.sleep(QUIET_S)

    async def _open(self) -> None:
        if await self._source.info() is None:
            raise self._source.missing()
        if await self._target.info() is None:
            if not self._what.create_target:
                raise self._target.missing()
            await self._target.create(self._what.create_target_params)
        if self._what.use_checkpoints:
            self._logs = [await end.log(self._name) for end in (self._source, self._target)]
        self.stored = checkpoints.start_of(*self._logs)
        if self._what.since_seq is not None:
            self.stored = self._what.since_seq
        self._start = self.through = self.stored

    async def _changes(self) -> tuple[dict[str, Any], int]:
        """The next changes, and how many were asked for."""
        limit = self._limits.replication_batch_docs
        while True:
            try:
                batch = await self._source.changes(
                    self.through, limit, wait=self._what.continuous, params=self._params,
                    body=self._body,
                )  # fmt: skip
                return batch, limit
            except TooMuch:
                if limit == 1:
                    raise
                limit = max(limit // 4, 1)

    @property
    def _has_moved(self) -> bool:
        """Is it worth a checkpoint?"""
        return self._has_rows or not checkpoints.is_same(self.through, self.stored)

    def _is_due(self, is_end: bool) -> bool:
        waited_ms = (self._clock.monotonic() - self._stored_at) * 1000
        least_ms = self._what.checkpoint_interval_ms
        # With nothing left to do a checkpoint costs nobody time.
        return waited_ms >= (min(least_ms, IDLE_CHECKPOINT_MS) if is_end else least_ms)

    # Documents

    async def _take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        revs = batches.revs_of(rows)
        if not revs:
            return
        self.counts.missing_checked += sum(map(len, revs.values()))
        wanted = batches.wanted_of(await self._target.revs_diff(revs))
        self.counts.missing_found += len(wanted)
        for portion in batches.portions(wanted):
            await self._bring(portion)
            await self._rest()

    async def _bring(self, portion: Sequence[Wanted]) -> None:
        try:
            found = await self._source.fetch(portion)
        except TooMuch:
            if len(portion) > 1:
                half = len(portion) // 2
                await self._bring(portion[:half])
                await self._bring(portion[half:])
                return
            found = None
        if found is None:
            for one in portion:
                await self._pass_on(one)
            return
        ancestors = {one.id: one.ancestors for one in portion}
        for head in (pair.head for pair in found if pair.head.has_attachments):
            await self._pass_on(Wanted(head.id, head.rev, ancestors.get(head.id, ())))
        await self._write([pair for pair in found if not pair.head.has_attachments])

    async def _write(self, found: Sequence[Fetched]) -> None:
        self.counts.docs_read += len(found)
        for group in batches.bodies(one.raw for one in found):
            await self._write_group(group)

    async def _write_group(self, group: Sequence[bytes]) -> None:
        refused = await self._target.store(group)
        if refused is None and len(group) > 1:  # one of them spoils it for the others
            for one in group:
                await self._write_group([one])
            return
        refused = len(group) if refused is None else refused
        self.counts.doc_write_failures += refused
        self.counts.docs_written += len(group) - refused

    async def _pass_on(self, one: Wanted) -> None:
        taken = await self._source.hand_over(one, self._target)
        if taken is None:
            return
        self.counts.docs_read += 1
        if taken:
            self.counts.docs_written += 1
        else:
            self.counts.doc_write_failures += 1

    async def _rest(self) -> None:
        busy_s = self._source.busy_s + self._target.busy_s
        self._source.busy_s = self._target.busy_s = 0.0
        await self._pace(busy_s)

    # Checkpoints

    async def _store(self) -> dict[str, Any]:
        """Write the log at both sides, the target's first: what it says is there, is there."""
        await self._target.confirm()
        end = (self.through, self._moment())
        made: dict[str, Any] = {}
        for place in (1, 0):
            before = self._logs[place]
            made = checkpoints.next_log(
                before, self._session, (self._start, self._started), end, self.counts
            )
            if self._what.use_checkpoints:
                rev = before.get("_rev") if before else None
                side = (self._source, self._target)[place]
                self._logs[place] = {**made, "_rev": await side.put_log(self._name, made, rev)}
        self.stored, self._has_rows = self.through, False
        self._stored_at = self._clock.monotonic()
        return made

    def _nothing_new(self, has_written: bool) -> dict[str, Any]:
        log = self._logs[0] or {}
        shown = {name: value for name, value in log.items() if name[:1] != "_"}
        if has_written:
            return {"ok": True, **shown}
        shown = {"session_id": self._session, "source_last_seq": self.through, **shown}
        shown.setdefault("replication_id_version", checkpoints.VERSION)
        return {"ok": True, "no_changes": True, "history": [], **shown}

    def _moment(self) -> str:
        return formatdate(self._clock.wall_ms() / 1000, usegmt=True)


def _question(what: Replication) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(parameters of `_changes`, its body)"""
    params: dict[str, Any] = {"style": what.style}
    if what.doc_ids is not None:
        return params | {"filter": "_doc_ids"}, {"doc_ids": list(what.doc_ids)}
    if what.selector is not None:
        return params | {"filter": "_selector"}, {"selector": dict(what.selector)}
    if what.filter is not None:
        params |= {**what.query_params, "filter": what.filter}
    return params, None
