"""Instructions a request: ``python -m bench counters``, a check that a busy machine cannot fool.

``bench.operations`` runs under valgrind's callgrind, which counts every instruction of the process,
of Python, SQLite and the rest, and counts the same on any day. What is counted is stored in
``counters.json``; ``--check`` fails when a case takes 15% more than that.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import operations, outputs, stats
from bench.servers import BenchError

STORED = Path(__file__).with_name("counters.json")
GROWN_MAX = 0.15
CONTROL_S_MAX = 60.0

_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Change:
    """A case's instructions a request, stored and counted; ``None``: not there."""

    name: str
    stored: int | None
    counted: int | None

    @property
    def grown(self) -> float | None:
        """0.1 is 10% more; ``None`` when one is missing."""
        if not self.stored or self.counted is None:
            return None
        return self.counted / self.stored - 1

    @property
    def fails(self) -> bool:
        """Has it grown too much, or is it not stored?"""
        return self.counted is not None and (self.grown is None or self.grown > GROWN_MAX)


def changes(stored: Mapping[str, int], counted: Mapping[str, int]) -> list[Change]:
    """All cases of either, those counted first."""
    names = [*counted, *(name for name in stored if name not in counted)]
    return [Change(name, stored.get(name), counted.get(name)) for name in names]


def table(seen: Sequence[Change]) -> str:
    """A row for each case."""
    rows = [
        [
            one.name,
            "-" if one.counted is None else f"{one.counted:,}",
            "-" if one.stored is None else f"{one.stored:,}",
            "-" if one.grown is None else stats.number(1 + one.grown),
            "too much" if one.fails else "",
        ]
        for one in seen
    ]
    return stats.markdown_table(("case", "instructions", "stored", "times", ""), rows)


def total(dump: str) -> int:
    """The instructions in what callgrind has written. ValueError without them."""
    found = _TOTALS.search(dump)
    if found is None:
        raise ValueError(f"callgrind wrote no total: {dump[:200]!r}")
    return int(found[1])


def main(argv: Sequence[str]) -> int:
    """0, or 1 when ``--check`` found too much. BenchError when it cannot be held against what is
    stored.
    """
    arguments = _arguments(argv)
    with outputs.working_folder(arguments) as folder:
        counted = count(folder, arguments.only)
    stored = _stored()
    seen = changes(stored["instructions"], counted)
    shown = [one for one in seen if one.counted is not None]
    print(f"- stored with {stored['with']}\n- counted with {_with()}\n\n{table(shown)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(counted, indent=1) + "\n")
    if arguments.store:
        STORED.write_text(_record(stored["instructions"] | counted))
    if arguments.check and stored["with"] != _with():
        raise BenchError("stored with another Python or machine: look at the code before, --store")
    return 1 if arguments.check and any(one.fails for one in shown) else 0


def _arguments(argv: Sequence[str]) -> Any:
    parser = outputs.parser("counters", "Instructions a request, by callgrind.", plots=False)
    names = [case.name for case in operations.CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="some of the cases")
    parser.add_argument("--check", action="store_true", help="fail on 15%% more than is stored")
    parser.add_argument("--store", action="store_true", help=f"write them to {STORED.name}")
    return parser.parse_args(argv)


def count(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Instructions a request for each case. BenchError when valgrind is missing or fails."""
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise BenchError("valgrind is missing: apt-get install valgrind")
    log = folder / "log"
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet"]
    command += [f"--callgrind-out-file={folder / 'out'}"]
    command += [sys.executable, "-m", "bench.operations", *names]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    cases = [case for case in operations.CASES if not names or case.name in names]
    try:
        return _counted(process, folder, cases)
    except (ValueError, subprocess.SubprocessError) as error:
        raise BenchError(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error
    finally:
        process.kill()
        process.wait()


def _counted(
    process: "subprocess.Popen[str]", folder: Path, cases: Sequence[operations.Case]
) -> dict[str, int]:
    counted: dict[str, int] = {}
    for number, case in enumerate(cases, 1):
        outputs.say(f"counting {case.requests} × {case.name}")
        _until(process, f"ready {case.name}")
        _control(process.pid, "--instr=on")
        _go_on(process)
        _until(process, f"done {case.name}")
        _control(process.pid, f"--dump={case.name}")
        _control(process.pid, "--instr=off")
        counted[case.name] = total((folder / f"out.{number}").read_text()) // case.requests
        _go_on(process)
    return counted


def _until(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdout is not None
    for said in process.stdout:
        if said.strip() == line:
            return
    raise ValueError(f"the process ended before it said {line!r}")


def _go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _control(pid: int, what: str) -> None:
    subprocess.run(
        ["callgrind_control", what, str(pid)],
        check=True,
        capture_output=True,
        timeout=CONTROL_S_MAX,
    )


def _stored() -> dict[str, Any]:
    if not STORED.exists():
        return {"with": "nothing yet", "instructions": {}}
    stored: dict[str, Any] = json.loads(STORED.read_text())
    return stored


def _record(counted: Mapping[str, int]) -> str:
    return json.dumps({"with": _with(), "instructions": dict(counted)}, indent=1) + "\n"


def _with() -> str:
    """Another Python or machine counts otherwise."""
    return f"Python {platform.python_version()}, {platform.machine()}"
