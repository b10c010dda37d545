"""`divandb promote`, `demote` and `receipts`: who owns a slot, by hand, and what came back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from divandb.cli import options
from divandb.cli.asking import Asked, ask
from divandb.cli.status import authorization_of, collected
from divandb.cli.tables import table

HEAD = ("SLOT", "AT", "WRITES", "DATABASE", "DOCUMENT", "REVISIONS", "CONFLICT")


@click.command()
@click.argument("node")
@options.data
@options.node
def promote(node: str, data: Path, url: str | None) -> None:
    """Have NODE, a replica, take its slot over from its owner.

    The owner publishes what it has accepted and becomes a replica. If it is gone, NODE takes over
    without it, unless another master still hears of it.
    """
    found = posted(node, "/_divan/promote", data, url, {})
    click.echo(f"{found['owner']} owns its slot, epoch {found['epoch']}")


@click.command()
@click.argument("node")
@options.data
@options.node
def demote(node: str, data: Path, url: str | None) -> None:
    """Have the most caught-up replica take over the slot that NODE owns."""
    found = posted(node, "/_divan/demote", data, url, {})
    click.echo(f"{found['owner']} owns the slot now, {node} is a replica")


@click.command()
@options.data
@options.node
@options.as_json
def receipts(data: Path, url: str | None, as_json: bool) -> None:
    """Show which writes came back with former owners of slots.

    A master that is replaced may hold writes that nobody else has. When it returns they are
    published; a receipt names the documents, and those that are in conflict since.
    """
    nodes = [one for one in collected(data, url)["nodes"] if one["up"] and "vector" in one]
    if not nodes:
        raise click.ClickException("no node answers")
    pages = _pages(nodes[0], authorization_of(data, url))
    if as_json:
        _print_json(pages)
        return
    is_empty = True
    for found in pages:
        rows = [row for receipt in found for row in _rows(receipt)]
        if rows:
            click.echo(table([HEAD, *rows]))
            is_empty = False
    if is_empty:
        click.echo("nothing came back")


def _pages(node: dict[str, Any], authorization: str | None) -> Iterator[list[dict[str, Any]]]:
    """Receipts, as many at a time as the node gives."""
    after: str | None = ""
    while after is not None:
        path = f"/_divan/receipts?after={quote(after, safe='')}"
        found = _answered(node, path, authorization, None)
        yield found["receipts"]
        after = found["next"]


def _print_json(pages: Iterator[list[dict[str, Any]]]) -> None:
    """One object, a receipt a line."""
    click.echo('{"receipts": [', nl=False)
    between = "\n"
    for found in pages:
        for one in found:
            click.echo(between + msgspec.json.encode(one).decode(), nl=False)
            between = ",\n"
    click.echo("\n]}")


def _rows(receipt: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each document; one for a receipt without any."""
    writes = f"{receipt['origin']} {receipt['first']}-{receipt['last']}"
    head = (receipt["slot"], receipt["at"], writes)
    documents: list[tuple[str, ...]] = [
        (*head, one["db"], one["id"], " ".join(one["revs"]), "yes" if one["conflict"] else "no")
        for one in receipt["documents"]
    ]
    return documents or [(*head, "-", "-", "-", "-")]


def posted(
    name: str, path: str, data: Path, url: str | None, body: dict[str, Any]
) -> dict[str, Any]:
    """What a node answers to this body; raises ``click.ClickException``."""
    nodes = {one["name"]: one for one in collected(data, url)["nodes"]}
    if name not in nodes:
        raise click.ClickException(f"there is no node {name}")
    return _answered(nodes[name], path, authorization_of(data, url), msgspec.json.encode(body))


def _answered(
    node: dict[str, Any], path: str, authorization: str | None, body: bytes | None
) -> dict[str, Any]:
    answer: Asked = asyncio.run(ask(node["url"], path, authorization, body))
    if answer.body is None:
        raise click.ClickException(f"{node['name']}: {answer.refused or answer.state}")
    return answer.body
