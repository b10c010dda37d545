"""Print what happened in random runs: ``python -m tests.sim.trace SEED…``; for comparing runs."""

import sys
import tempfile
from pathlib import Path

from tests.sim import chaos
from tests.sim.harness import MEMORY, play_out
from tests.sim.test_random import masters_alone, whole_groups


def main(seeds: list[int]) -> None:
    """A line for each commit of any node: when, who, and how many writes it contains since."""
    for seed in seeds:
        for make in (masters_alone, whole_groups):
            body, shape = make(seed)
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                cluster = play_out(body, Path(folder), seed, limits=chaos.LIMITS, **shape)
            for at_s, name, count in cluster.trace:
                print(f"{make.__name__} {seed} {at_s!r} {name} {count}")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]])
