"""`divandb drain`: take a node out of service before it is stopped, and bring it back."""

import time
from pathlib import Path
from typing import Any

import click

from divandb.cli import options
from divandb.cli.owners import posted
from divandb.cli.status import collected
from divandb.clock import SystemClock

CLOCK = SystemClock()
LOOK_S = 0.1


@click.command()
@click.argument("node")
@options.data
@options.node
@click.option("--off", is_flag=True, help="Bring it back into service.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For what is under way there to end.",
)
def drain(node: str, data: Path, url: str | None, off: bool, wait_s: float) -> None:
    """Take NODE out of service, and say when it may be stopped.

    An owner hands its slot over. The node leaves the clients' port and finishes what is under way.
    It stays out of service, over restarts too, until --off. The exit status is 1 if something is
    still under way after the wait.
    """
    found = posted(node, "/_divan/drain", data, url, {"drained": not off})
    if off:
        click.echo(f"{node} is in service")
        return
    if found["owner"] is not None:
        click.echo(f"{found['owner']} owns the slot now")
    until = CLOCK.monotonic() + wait_s
    while (left := _left(node, data, url)) is None or not left["done"]:
        if CLOCK.monotonic() > until:
            raise click.ClickException(f"{node} is not done: {_told(left)}")
        time.sleep(LOOK_S)
    click.echo(f"{node} is drained: it may be stopped")


def _left(name: str, data: Path, url: str | None) -> dict[str, Any] | None:
    nodes = [one for one in collected(data, url)["nodes"] if one["name"] == name]
    return nodes[0].get("drain") if nodes else None


def _told(left: dict[str, Any] | None) -> str:
    if left is None:
        return "it does not answer"
    return ", ".join(f"{count} {what}" for what, count in left.items() if what != "done" and count)
