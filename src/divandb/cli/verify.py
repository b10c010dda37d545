"""`divandb verify`: do all nodes hold the same, down to their rows?"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from divandb.cli import options
from divandb.cli.asking import ask_all
from divandb.cli.status import authorization_of, collected
from divandb.cli.verdicts import as_text, combined
from divandb.clock import SystemClock
from divandb.datadir import BOARDS

VERIFY = "/_divan/verify"
POLL_S = 0.25
CLOCK = SystemClock()


@click.command()
@options.data
@options.node
@options.as_json
@click.option(
    "--wait",
    "wait_s",
    type=click.IntRange(1),
    default=3600,
    show_default=True,
    help="Seconds until it gives up.",
)
def verify(data: Path, url: str | None, as_json: bool, wait_s: int) -> None:
    """Have all nodes read all rows and compare them with each other.

    The exit status is 1 if something differs, or cannot be said.
    """
    authorization = authorization_of(data, url)
    nodes = [node for node in collected(data, url)["nodes"] if node["role"] not in BOARDS]
    found = asyncio.run(_verified(nodes, authorization, CLOCK.monotonic() + wait_s))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        click.echo(as_text(found))
    sound = found["databases"] and all(one["identical"] for one in found["databases"])
    if found["problems"] or not sound:
        sys.exit(1)


async def _verified(
    nodes: list[dict[str, Any]], authorization: str | None, until: float
) -> dict[str, Any]:
    problems = [f"{node['name']} is {node['state']}" for node in nodes if not node["up"]]
    urls = {node["name"]: node["url"] for node in nodes if node["up"]}
    reports: dict[str, dict[str, Any]] = {}
    for step in ("rows", "nodes"):
        # All have read their rows before any is compared: a digest is worth what its rows are.
        reports = await _step(urls, step, authorization, until)
        problems += [
            f"{name}: {report['fault']}" for name, report in reports.items() if report["fault"]
        ]
        late = [name for name in urls if name not in reports]
        problems += [f"{name} has not answered in time, or refuses" for name in late]
        urls = {name: url for name, url in urls.items() if name in reports}
    return {
        "nodes": [node["name"] for node in nodes],
        "databases": combined(list(reports.values()), [node["name"] for node in nodes]),
        "problems": problems,
        "reports": list(reports.values()),
    }


async def _step(
    urls: Mapping[str, str], step: str, authorization: str | None, until: float
) -> dict[str, dict[str, Any]]:
    """The reports of those nodes that have done it in time."""
    places = {name: (url, VERIFY) for name, url in urls.items()}
    begun: dict[str, int] = {}
    done: dict[str, dict[str, Any]] = {}
    body = msgspec.json.encode({"step": step})
    while len(done) < len(places) and CLOCK.monotonic() < until:
        left = {name: place for name, place in places.items() if name not in begun}
        for name, said in (await ask_all(left, authorization, body)).items():
            if said.body is not None:
                begun[name] = said.body["run"]
        left = {name: places[name] for name in begun if name not in done}
        for name, said in (await ask_all(left, authorization)).items():
            report = said.body
            if report is not None and report["run"] == begun[name] and not report["running"]:
                done[name] = report
        await asyncio.sleep(POLL_S)
    return done
