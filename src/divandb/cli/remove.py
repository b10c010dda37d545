"""`divandb remove`: a node is a member of the cluster no more."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from divandb import datadir
from divandb.cli import boards, options
from divandb.cli.asking import ask
from divandb.cli.folder import alone, board_of, running, tell
from divandb.cli.status import authorization_of, collected
from divandb.clock import SystemClock
from divandb.datadir import DataDirError
from divandb.layout import specs

ENDS_S_MAX = 30.0
POLL_S = 0.05


@click.command()
@click.argument("node")
@options.data
@options.node
@click.option(
    "--force",
    is_flag=True,
    help="Also if it does not answer, or has writes that are nowhere else: they are lost with it.",
)
def remove(node: str, data: Path, url: str | None, force: bool) -> None:
    """Remove NODE from the cluster for good.

    Nothing waits for it any more, other nodes refuse it, and it ends when it hears of it. Its name
    is not given again: who wants it back adds a new node. The owner of a slot is not removed, see
    `divandb demote`.
    """
    nodes = {one["name"]: one for one in collected(data, url)["nodes"]}
    if node not in nodes:
        raise click.ClickException(f"there is no node {node}")
    try:
        if url is not None:
            _ask(nodes, node, force, authorization_of(data, url))
        else:
            with alone(data):
                _check_served(data, node)
                _check_rights(data)
                _ask(nodes, node, force, authorization_of(data, None))
                _take_out(data, node)
            _await_end(data, node)
    except (DataDirError, ValueError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
    click.echo(f"{node} is removed")
    if url is not None:
        click.echo("Take it out of the files of the board and of other nodes, too.", err=True)


def _check_served(data: Path, name: str) -> None:
    """Somebody must listen on the clients' port."""
    known = specs(datadir.read_members(data), {})
    serving = {spec.name for spec in known if spec.serves_clients}
    if serving == {name}:
        raise ValueError(f"{name} is the only node that serves clients here")


def _check_rights(data: Path) -> None:
    """It must be possible to take them from it."""
    cluster = running(data)
    if cluster.board and board_of(cluster) is None:
        boards.check_admin(data, cluster.board)


def _ask(
    nodes: dict[str, dict[str, Any]], name: str, force: bool, authorization: str | None
) -> None:
    """Have the owner of its slot say so, which hears most of it, or else any other node."""
    able = [one for one in nodes.values() if one["up"] and "vector" in one and one["name"] != name]
    if not able:
        raise ValueError("no other node answers")
    chosen = min(able, key=lambda one: one["name"] != nodes[name]["master"])
    body = msgspec.json.encode({"node": name, "force": force})
    answer = asyncio.run(ask(chosen["url"], "/_divan/remove", authorization, body))
    if answer.body is None:
        raise ValueError(f"{chosen['name']}: {answer.refused or answer.state}")


def _take_out(data: Path, name: str) -> None:
    """The folder names it no more, it loses its rights on the boards, and its process ends."""
    cluster, members = running(data), datadir.read_members(data)
    if name not in {one.name for one in members}:
        return
    datadir.write_removed(data, [*datadir.read_removed(data), name])
    datadir.write_members(data, [one for one in members if one.name != name])
    # At once, for it ends by itself as soon as it hears of it, and must not be started again.
    os.kill(cluster.pid, signal.SIGUSR1)
    board = board_of(cluster)
    if board is not None:
        tell(board, signal.SIGHUP)
    else:
        boards.set_up(data, cluster.board, is_new=False)


def _await_end(data: Path, name: str) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + ENDS_S_MAX
    while (cluster := datadir.read_cluster(data)) is not None:
        if name not in {one.name for one in cluster.nodes}:
            return
        if clock.monotonic() > deadline:
            raise DataDirError(f"{name} is removed, and its process has not ended yet")
        time.sleep(POLL_S)
