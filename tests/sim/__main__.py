"""``python -m tests.sim``: play one seed again, or look for seeds that fail.

    python -m tests.sim --seed N            play it; --trace prints all that happened
    python -m tests.sim --seeds 0-999       these
    python -m tests.sim --minutes M         new ones, on all cores

``--shape 3x3`` has all of them played by 3 masters with 3 replicas each.

Exits with 1 when a seed fails, and says how to play it again.
"""

import argparse
import os
import sys

from tests.sim.search import Report, last_line, new_seeds, played, search

ENDLESS = 10.0**6
FAILED_MAX = 20
SAY_EVERY = 100
"""Seeds."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    options = _parser().parse_args(arguments)
    report = Report()
    if options.seed is not None:
        outcome = played(options.seed, traced=options.trace, fixed=options.shape)
        for at_s, what, how in outcome.trace:
            print(f"{at_s!r} {what} {how}")
        report.add(outcome)
        if outcome.fault is not None:
            print(outcome.fault, file=sys.stderr)
    else:
        seeds = new_seeds()
        if options.seeds is not None:
            first, _, last = options.seeds.partition("-")
            seeds = iter(range(int(first), int(last or first) + 1))
        minutes = options.minutes or ENDLESS
        for outcome in search(seeds, minutes, options.jobs, report, options.shape):
            if outcome.fault is not None:
                print(f"seed {outcome.seed} fails: {last_line(outcome.fault)}", flush=True)
            if len(report.failed) >= FAILED_MAX:
                break  # what is wrong is everywhere
            if report.runs % SAY_EVERY == 0:
                print(next(report.lines()), file=sys.stderr, flush=True)
    if not options.trace:
        print("\n".join(report.lines()))
    return 1 if report.failed else 0


def _shape(text: str) -> tuple[int, int]:
    masters, _, replicas = text.partition("x")
    return int(masters), int(replicas)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="play this one here")
    what.add_argument("--seeds", metavar="A-B", help="play these")
    what.add_argument("--minutes", type=float, help="play new ones for so long")
    parser.add_argument("--shape", type=_shape, metavar="MxR", help="masters, replicas for each")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
