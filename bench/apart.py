"""Work in a process of its own, whose CPU is not the measuring one's: a module of this package gets
its plan as a line of JSON, and ends with the outcome as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.servers import BenchError


class Apart:
    """A process that carries out a plan; ``called`` is its name in what goes wrong."""

    def __init__(self, module: str, called: str, plan: dict[str, Any]) -> None:
        self._called = called
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.tell(json.dumps(plan))

    def tell(self, line: str) -> None:
        """Say one more line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def outcome(self, wait_s_max: float) -> dict[str, Any]:
        """Waits for the end. BenchError when it has no outcome."""
        try:
            output, faults = self._process.communicate(timeout=wait_s_max)
        except subprocess.TimeoutExpired as late:
            raise BenchError(f"the {self._called} did not end: {late}") from late
        finally:
            self.kill()
        if self._process.returncode:
            raise BenchError(f"the {self._called} failed:\n{faults}")
        outcome: dict[str, Any] = json.loads(output)
        return outcome

    def kill(self) -> None:
        """Ends the process if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
