"""What the governor sees: how late the event loop is, and how short the machine is of what it has.

The numbers are the kernel's (proc(5)): of the machine, and of its control group where the kernel
gives pressure for that. What a kernel does not give counts as none.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

from divandb.clock import Clock
from divandb.governor import LOOK_S, Governor, Look, Shortages
from divandb.telemetry import Log

PROBE_S = 0.02
"""So often it is looked how late the loop is, while clients ask: each wakes it."""
PROBES_MAX = 100
WORST_SHARE = 0.01
LOG_EVERY_S = 10.0
PROC = Path("/proc")


class Senses:
    """Looks for one node, on its event loop."""

    def __init__(
        self,
        governor: Governor,
        asked: Callable[[], int],
        lag_ms: Callable[[], float | None],
        machine: Callable[[], Shortages],
        log: Log,
        *,
        probe_s: float = PROBE_S,
    ) -> None:
        """``asked`` counts clients' requests, ``lag_ms`` is how old the node's view is, ``machine``
        looks at the machine.
        """
        self._governor = governor
        self._asked = asked
        self._lag_ms = lag_ms
        self._log = log
        self._probe_s = probe_s
        self._machine = machine
        self._seen = 0
        self._late_ms: deque[float] = deque(maxlen=PROBES_MAX)
        self._told = False
        self._told_at = float("-inf")

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            pause_s = self._probe_s if self._governor.is_asked else LOOK_S
            due = loop.time() + pause_s
            await asyncio.sleep(pause_s)
            now = loop.time()
            self._late_ms.append((now - due) * 1000)
            if now - looked >= LOOK_S:
                self._governor.look(self._look(), now - looked)
                self._tell(now)
                looked = now

    def _look(self) -> Look:
        asked = self._asked()
        requests, self._seen = max(asked - self._seen, 0), asked
        if not requests and not self._governor.is_asked:
            self._late_ms.clear()
            return Look(0, 0.0, self._lag_ms())
        late = sorted(self._late_ms, reverse=True)
        wait_ms = late[int(len(late) * WORST_SHARE)]
        return Look(requests, wait_ms, self._lag_ms(), self._machine())

    def _tell(self, now: float) -> None:
        """Once when the budget is cut or clients are hurt, once when that is over."""
        governor = self._governor
        is_trouble = governor.is_cut or governor.hurts
        if is_trouble != self._told and now - self._told_at >= LOG_EVERY_S:
            self._told, self._told_at = is_trouble, now
            self._log.event("budget", share=round(governor.share, 2), why=governor.reason)


class Machine:
    """The kernel's numbers since the last time."""

    def __init__(self, clock: Clock, proc: Path = PROC) -> None:
        self._clock = clock
        self._proc = proc
        self._cpu = (0, 0)
        self._stalled = (0, 0)
        self._looked_s = clock.monotonic()
        self.look()

    def look(self) -> Shortages:
        """What was short."""
        return Shortages(self._busy(), self._free(), *self._pressures())

    def _busy(self) -> float:
        words = self._lines("stat")[0].split()[1:9]
        ticks = [int(word) for word in words]
        idle, total = sum(ticks[3:5]), sum(ticks)
        (idle_before, total_before), self._cpu = self._cpu, (idle, total)
        spent = total - total_before
        return 1 - (idle - idle_before) / spent if spent else 0.0

    def _free(self) -> float:
        sizes = {line.partition(":")[0]: int(line.split()[1]) for line in self._lines("meminfo")}
        return sizes["MemAvailable"] / sizes["MemTotal"]

    def _pressures(self) -> tuple[float, float]:
        now_s = self._clock.monotonic()
        passed_us, self._looked_s = max(now_s - self._looked_s, 1e-3) * 1e6, now_s
        stalled = self._stall_us("memory", "some"), self._stall_us("io", "full")
        before, self._stalled = self._stalled, stalled
        return (stalled[0] - before[0]) / passed_us, (stalled[1] - before[1]) / passed_us

    def _stall_us(self, of: str, kind: str) -> int:
        """Microseconds since the machine began."""
        try:
            lines = self._lines(f"pressure/{of}")
        except OSError:  # not in this kernel, or not for us
            return 0
        return next((int(one.rpartition("=")[2]) for one in lines if one.startswith(kind)), 0)

    def _lines(self, name: str) -> list[str]:
        return (self._proc / name).read_text().splitlines()
