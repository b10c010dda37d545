"""When rows are read: soon after the start, then now and then, and when a digest is in doubt."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from divandb.cluster import scanner as module
from divandb.cluster.findings import Findings
from divandb.cluster.scanner import Scanner
from divandb.config import Limits
from divandb.governor import Governor, Work
from divandb.store.spares import Spares
from tests.sim.world import SimClock, SimLoop
from tests.stores import Lines, Store, edit

LIMITS = Limits(verify_every_s=30, verify_rows_every_s=1000)


class Bench:
    """A scanner of one file, on simulated time, in which nothing takes any."""

    def __init__(self, folder: Path, loop: SimLoop) -> None:
        self.loop = loop
        self.store = Store(folder)
        self.store.create("x")
        self.store.write("x", *(edit(f"d{number}", None, {}) for number in range(300)))
        self.findings = Findings(SimClock(loop), Lines())
        self.work_s = 0.0
        """How long a reader needs for a piece."""
        self.fails = False
        self.scanner = Scanner(
            Spares(self.store.disk), self.execute, self.offload, self.findings,
            Governor(LIMITS).pace(Work.PROOFS), SimClock(loop), LIMITS, Lines(),
        )  # fmt: skip

    async def execute(self, step: Callable[[Any], Any], size_bytes: int) -> Any:
        if self.fails:
            raise OSError("the disk")
        return self.store.do(step)

    async def offload(self, function: Any, *arguments: Any) -> Any:
        await asyncio.sleep(self.work_s)
        return function(*arguments)

    @property
    def rows(self) -> int:
        return self.findings.totals.checked_rows


def play(folder: Path, body: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    loop = SimLoop()
    asyncio.set_event_loop(loop)

    async def whole() -> None:
        bench = Bench(folder, loop)
        running = asyncio.ensure_future(bench.scanner.run(20.0))
        try:
            await body(bench)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            bench.store.close()

    try:
        loop.run_until_complete(whole())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_rows_are_read_after_the_start_and_then_at_intervals(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await asyncio.sleep(19)
        assert (bench.rows, bench.scanner.passed) == (0, None)
        await asyncio.sleep(2)
        assert (bench.rows, bench.scanner.passed) == (300, 20.0)
        await asyncio.sleep(997)
        assert bench.rows == 300
        await asyncio.sleep(3)
        assert bench.rows == 600

    play(tmp_path, body)


def test_reading_takes_its_share_of_the_time_and_half_if_somebody_waits(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.work_s = 1.0
        began = bench.loop.time()
        assert await bench.scanner.read_all() == 300
        # One to connect, and three pieces, each with as long a rest.
        assert bench.loop.time() - began == 1 + 3 * 2
        await asyncio.sleep(20 - bench.loop.time() + 1 + 3 * 20 - 0.5)
        assert bench.scanner.passed == began + 7
        await asyncio.sleep(1)
        assert bench.scanner.passed == 20 + 1 + 3 / LIMITS.verify_share_max

    play(tmp_path, body)


def test_a_digest_in_doubt_is_counted_soon_but_not_again_and_again(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        database = bench.store.ledger.register["x"]
        for _ in range(3):
            bench.store.do(functools.partial(_spoil, num=database.num))
            bench.scanner.doubt("x", 1)
            bench.scanner.doubt("x", 2)
            bench.scanner.doubt("nobody", 1)
            await asyncio.sleep(1)
            assert bench.findings.totals.corrected_digests == 1
        await asyncio.sleep(2 * LIMITS.verify_every_s)
        assert bench.findings.totals.corrected_digests == 2
        rows = bench.rows
        await asyncio.sleep(5 * LIMITS.verify_every_s)
        assert bench.rows == rows

    play(tmp_path, body)


def _spoil(ledger: Any, num: int) -> None:
    ledger.databases[num].digest = b"\x01" * 16
    ledger.touch(ledger.databases[num])


def test_what_is_damaged_is_told(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        told: list[None] = []
        bench.scanner.damage_found = lambda: told.append(None)
        bench.store.connection.execute("UPDATE doc SET body = x'00' WHERE id = 'd7'")
        await bench.scanner.read_all()
        assert list(bench.findings.damaged) == [("x", 1, "dd7")]
        assert len(told) == 1
        bench.store.connection.execute("DELETE FROM doc WHERE id = 'd7'")
        await bench.scanner.read_all()
        assert not bench.findings.damaged
        assert bench.findings.totals.corrected_digests == 1

    play(tmp_path, body)


def test_a_fault_is_said_and_tried_again(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.fails = True
        await asyncio.sleep(21)
        assert bench.scanner.failing == "the disk"
        bench.fails = False
        await asyncio.sleep(module.RETRY_S)
        assert bench.scanner.failing is None
        assert bench.rows == 300

    play(tmp_path, body)
