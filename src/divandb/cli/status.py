"""`divandb status`: what runs in a data folder, and whether it answers."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from divandb import datadir
from divandb.cli import options
from divandb.supervisor import answers

COLUMNS = ("name", "role", "master", "url", "pid", "up", "restarts", "started_at")


@click.command()
@options.data
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(data: Path, as_json: bool) -> None:
    """Show the nodes. The exit status is 1 when none is up."""
    try:
        cluster = datadir.read_cluster(data)
    except datadir.DataDirError as problem:
        raise click.ClickException(str(problem)) from None
    if cluster is None:
        raise click.ClickException(f"nothing runs in {data}")
    nodes = [{**msgspec.to_builtins(node), "up": answers(node.url)} for node in cluster.nodes]
    click.echo(as_text(nodes) if not as_json else _as_json(cluster, nodes))
    if not any(node["up"] for node in nodes):
        click.echo("divandb: no node answers", err=True)
        sys.exit(1)


def _as_json(cluster: datadir.ClusterRecord, nodes: list[dict[str, Any]]) -> str:
    whole = {"url": cluster.url, "pid": cluster.pid, "nodes": nodes}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def as_text(nodes: list[dict[str, Any]]) -> str:
    """A table with a line for each node."""
    rows = [list(COLUMNS), *([_cell(node[column]) for column in COLUMNS] for node in nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
