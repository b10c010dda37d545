"""Reads all rows now and then, with a small share of the machine: do they say what was written?"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from divandb.clock import Clock
from divandb.cluster.findings import Findings
from divandb.cluster.witness import reader
from divandb.config import Limits
from divandb.governor import Pace
from divandb.store import mending, scanning
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.proofs import DOCUMENT
from divandb.store.spares import Spares
from divandb.telemetry import Log
from divandb.trouble import Trouble

ATTEMPTS_MAX = 3
"""A count that a failed transaction has undone begins again so often."""
RESTS_ASKED = 1.0
"""When somebody waits for it, it rests so many times what a piece took."""
RETRY_S = 10.0
DOUBTED_S = 1.0
"""Between two looks at databases whose digest is in doubt."""

Offload = Callable[..., Awaitable[Any]]
Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]


class Scanner:
    """Counts databases, one at a time."""

    def __init__(
        self, spares: Spares, execute: Execute, offload: Offload, findings: Findings, pace: Pace,
        clock: Clock, limits: Limits, log: Log,
    ) -> None:  # fmt: skip
        """``pace`` is awaited after each piece, unless somebody waits for the whole."""
        self._spares = spares
        self._execute = execute
        self._offload = offload
        self._findings = findings
        self._pace = pace
        self._clock = clock
        self._limits = limits
        self._trouble = Trouble(log, "reading all rows fails")
        self._one = asyncio.Lock()
        self._asked = 0
        """How many wait for a reading of all rows."""
        self._doubted: set[tuple[str, int]] = set()
        self._due = asyncio.Event()
        self._ended: dict[int, float] = {}
        self._next_pass_s = 0.0
        self.passed: float | None = None
        """When all rows had been read the last time; monotonic, seconds."""
        self.damage_found: Callable[[], None] = lambda: None

    @property
    def failing(self) -> str | None:
        """The last fault, while rows cannot be read."""
        return self._trouble.failing

    def doubt(self, name: str, generation: int) -> None:
        """The digest of this database may not be that of its rows: count them soon."""
        self._doubted.add((name, generation))
        self._due.set()

    async def run(self, first_s: float) -> None:
        """Read all rows every ``verify_rows_every_s``, first after so many seconds; until
        cancelled.
        """
        self._next_pass_s = self._clock.monotonic() + first_s
        while True:
            left_s = max(self._next_pass_s - self._clock.monotonic(), 0.0)
            # In doubt still: what was counted just now, and is left for a while.
            wait_s = min(left_s, DOUBTED_S) if self._doubted else left_s
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), wait_s)
            with self._trouble.attempt():
                await self._round()
            if self._trouble.failing is not None:
                await asyncio.sleep(RETRY_S)

    async def _round(self) -> None:
        self._due.clear()
        if self._clock.monotonic() >= self._next_pass_s:
            await self._read_all()
            self._next_pass_s = self._clock.monotonic() + self._limits.verify_rows_every_s
        known = await self._living() if self._doubted else []
        self._doubted &= {(name, generation) for _, name, generation in known}
        recent_s = self._clock.monotonic() - self._limits.verify_every_s
        for num, name, generation in known:
            is_old = self._ended.get(num, recent_s) <= recent_s
            if is_old and (name, generation) in self._doubted:
                self._doubted.discard((name, generation))
                await self._count(num, name, generation)

    async def read_all(self) -> int:
        """Read the rows of all databases for somebody who waits; how many there were."""
        self._asked += 1
        try:
            return await self._read_all()
        finally:
            self._asked -= 1

    async def _read_all(self) -> int:
        before = self._findings.totals.checked_rows
        known = await self._living()
        self._ended = {
            num: at for num, at in self._ended.items() if num in {n for n, _, _ in known}
        }
        for num, name, generation in known:
            await self._count(num, name, generation)
        self.passed = self._clock.monotonic()
        return self._findings.totals.checked_rows - before

    async def _living(self) -> list[tuple[int, str, int]]:
        found: list[tuple[int, str, int]] = await self._execute(scanning.living, 0)
        return found

    async def _count(self, num: int, name: str, generation: int) -> None:
        async with self._one, reader(self._spares, self._offload) as connection:
            for _ in range(ATTEMPTS_MAX):
                damaged: dict[str, str] = {}
                began = self._clock.monotonic()
                wrong = await self._attempt(connection, num, damaged)
                await self._note(name, generation, damaged, began)
                if wrong is None:
                    continue
                self._findings.note_sound(name, generation, damaged)
                self._ended[num] = self._clock.monotonic()
                if wrong:
                    self._findings.note_digest(name)
                return

    async def _attempt(
        self, connection: Connection, num: int, damaged: dict[str, str]
    ) -> bool | None:
        """Was the digest another? ``None``: something has undone the count."""
        reached: tuple[int, int] | None = await self._execute(
            functools.partial(scanning.begin, num=num), 0
        )
        more: bool | None = reached is not None
        while more:
            more = await self._execute(functools.partial(scanning.take_registers, num=num), 0)
        while reached is not None and reached[0] < reached[1]:
            began = self._clock.monotonic()
            piece = await self._offload(scanning.read, connection, num, *reached)
            took_s = self._clock.monotonic() - began
            damaged.update((DOCUMENT + doc_id, fault) for doc_id, fault in piece.faults)
            before = reached[0]
            reached = await self._execute(functools.partial(scanning.take, num=num, piece=piece), 0)
            if reached is not None and reached[0] > before:
                self._findings.totals.checked_rows += piece.rows
            if self._asked:
                await asyncio.sleep(took_s * RESTS_ASKED)
            else:
                await self._pace(took_s)
        if reached is None:
            return None
        wrong: bool | None = await self._execute(functools.partial(scanning.finish, num=num), 0)
        return wrong

    async def _note(
        self, name: str, generation: int, damaged: dict[str, str], began: float
    ) -> None:
        if not damaged:
            return
        needs = await self._execute(mending.might_hold, 0)
        for key, fault in damaged.items():
            self._findings.note_damaged((name, generation, key), fault, needs, began)
        self.damage_found()
