"""What the commands besides the plain run share: the folder, the files that are kept, the words.

A command has ``main(argv) -> exit status``; ``bench.__main__`` calls it and catches what a server
that cannot be asked raises.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from bench.servers import BenchError

RESULTS = Path(__file__).parent / "results"


def parser(command: str, description: str, *, plots: bool = True) -> argparse.ArgumentParser:
    """The options that all commands have, those with ``plots`` some more."""
    made = argparse.ArgumentParser(prog=f"python -m bench {command}", description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE too")
    made.add_argument("--folder", type=Path, help="where to make the temporary folder")
    if plots:
        made.add_argument("--quick", action="store_true", help="a smoke run")
        made.add_argument(
            "--results", type=Path, default=RESULTS, help="where plots and tables go (results)"
        )
    return made


@contextmanager
def working_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """A temporary folder on the disk that was asked for."""
    with tempfile.TemporaryDirectory("-bench", dir=arguments.folder) as name:
        yield Path(name)


def two_cores() -> tuple[set[int], set[int]]:
    """The core of the server and that of the load: the first two of ours, or the same one."""
    ours = sorted(os.sched_getaffinity(0))
    return {ours[0]}, {ours[1 % len(ours)]}


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """This process, and all that it starts, on these cores until the block is left."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def about(folder: Path, run: str) -> dict[str, str]:
    """Machine, load, versions, and what was run, by name."""
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    return machine.describe(folder) | {"load average before": load, "run": run}


def lines(named: Mapping[str, str]) -> str:
    """``named`` as a Markdown list."""
    return "\n".join(f"- {name}: {value}" for name, value in named.items())


def keep(
    arguments: argparse.Namespace,
    command: str,
    markdown: str,
    plots: Mapping[str, str],
    found: Mapping[str, Any],
) -> None:
    """Prints the table and writes table and plots into the folder for results."""
    folder: Path = arguments.results
    folder.mkdir(parents=True, exist_ok=True)
    images = "".join(f"\n![{name}]({name}.svg)\n" for name in plots)
    (folder / f"{command}.md").write_text(f"# {command}\n\n{markdown}\n{images}")
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg)
    print(markdown)
    say(f"written to {folder}: {', '.join([f'{command}.md', *(f'{n}.svg' for n in plots)])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def at_least_one(**numbers: int) -> None:
    """BenchError with the name of an option that is below 1."""
    low = [name for name, value in numbers.items() if value < 1]
    if low:
        raise BenchError(f"at least 1: {', '.join('--' + x.replace('_', '-') for x in low)}")


def say(text: str) -> None:
    """A line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
