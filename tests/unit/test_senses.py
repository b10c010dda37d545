"""What the governor sees."""

import asyncio
from pathlib import Path

from divandb.config import Limits
from divandb.governor import LOOK_S, Governor, Shortages, Work
from divandb.senses import LOG_EVERY_S, Machine, Senses
from tests.sim.world import SimLoop
from tests.stores import StillClock


class Lines:
    """A log that is kept."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def event(self, what: str, **values: object) -> None:
        self.lines.append((what, values))

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        raise fault


class Bench:
    """A governor that looks, on simulated time."""

    def __init__(self) -> None:
        self.loop = SimLoop()
        self.governor, self.log = Governor(Limits()), Lines()
        self.asked = 0
        self.lag_ms = 0.0
        self.short = Shortages()
        self.senses = Senses(
            self.governor, lambda: self.asked, lambda: self.lag_ms, lambda: self.short, self.log
        )

    def play(self, for_s: float, *, asks: bool = True) -> None:
        """Let time pass, in which half of it is spent on replication."""

        async def whole() -> None:
            running = asyncio.ensure_future(self.senses.run())
            for _ in range(round(for_s / 0.1)):
                self.asked += asks
                self.governor.rest_s(Work.REPLICATION, 0.05)
                await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        self.loop.run_until_complete(whole())

    def close(self) -> None:
        self.loop.close()


def test_a_node_that_is_asked_and_one_that_is_not() -> None:
    bench = Bench()
    bench.play(3)
    assert bench.governor.is_asked
    assert bench.governor.reason == "clients fare as usual"
    assert bench.governor.use[Work.REPLICATION] > 0.3
    bench.play(3, asks=False)
    assert bench.governor.reason == "nobody asks"
    bench.play(3 * LOOK_S)
    assert bench.governor.is_asked
    bench.close()


def test_trouble_is_logged_once_and_its_end_too() -> None:
    bench = Bench()
    bench.play(3)
    bench.short = Shortages(disk_pressure=0.9)
    bench.play(30)
    assert [line[1]["why"] for line in bench.log.lines] == ["the disk is behind"]
    bench.short = Shortages()
    bench.play(LOG_EVERY_S + 1)
    assert [line[1]["why"] for line in bench.log.lines] == [
        "the disk is behind", "clients fare as usual"
    ]  # fmt: skip
    bench.close()


def kernel(folder: Path, *, idle: int, stalled_us: int | None) -> None:
    """Files as proc(5) has them."""
    (folder / "stat").write_text(f"cpu  {1000 - idle} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    (folder / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n")
    if stalled_us is not None:
        (folder / "pressure").mkdir(exist_ok=True)
        for of in ("memory", "io"):
            text = "some avg10=0.00 avg60=0.00 avg300=0.00 total={0}\nfull avg10=0.00 total={1}\n"
            (folder / "pressure" / of).write_text(text.format(stalled_us * 2, stalled_us))


def test_the_kernels_numbers(tmp_path: Path) -> None:
    clock = StillClock()
    kernel(tmp_path, idle=0, stalled_us=0)
    machine = Machine(clock, tmp_path)
    clock.ms += 1000
    (tmp_path / "stat").write_text("cpu  1150 0 0 50 0 0 0 0 0 0\n")
    kernel_before = (tmp_path / "stat").read_text()
    kernel(tmp_path, idle=0, stalled_us=200_000)
    (tmp_path / "stat").write_text(kernel_before)
    seen = machine.look()
    assert (round(seen.cpu, 6), seen.memory_free) == (0.75, 0.25)
    assert (round(seen.memory_pressure, 6), round(seen.disk_pressure, 6)) == (0.4, 0.2)


def test_a_kernel_that_knows_no_pressure(tmp_path: Path) -> None:
    clock = StillClock()
    kernel(tmp_path, idle=500, stalled_us=None)
    machine = Machine(clock, tmp_path)
    clock.ms += 1000
    assert machine.look() == Shortages(cpu=0.0, memory_free=0.25)


def test_this_kernel() -> None:
    seen = Machine(StillClock()).look()
    assert 0 <= seen.cpu <= 1
    assert 0 < seen.memory_free <= 1
