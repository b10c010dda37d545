"""`divandb status`: what runs, whether it answers, and how far each node is."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from divandb import datadir
from divandb.cli import options
from divandb.cli.asking import Asked, ask_all, basic, credentials_in, greet
from divandb.cli.tables import as_text
from divandb.cluster import trust
from divandb.config import MASTER, REPLICA
from divandb.datadir import BOARD, BOARDS, BROKER, NodeRecord
from divandb.joining import arriving

WATCH_S = 1.0
"""Between two tables."""
CLEAR = "\x1b[H\x1b[2J"
NODES_MAX = 4096
BOARD_UP = "/board/v1/_up"
NODE_STATUS = "/_divan/status"
_PLACE = ("name", "role", "url", "pid", "started")


@click.command()
@options.data
@options.node
@options.as_json
@click.option("--watch", is_flag=True, help="Print it again every second, until Ctrl-C.")
def status(data: Path, url: str | None, as_json: bool, watch: bool) -> None:
    """Show the nodes. The exit status is 1 when none is up."""
    if watch:
        _watch(data, url, as_json)
        return
    found = collected(data, url)
    click.echo(_shown(found, as_json))
    for line in _refusals(found):
        click.echo(f"divandb: {line}", err=True)
    if not any(node["up"] for node in found["nodes"]):
        click.echo("divandb: no node answers", err=True)
        sys.exit(1)


def _watch(data: Path, url: str | None, as_json: bool) -> None:
    clear = CLEAR if sys.stdout.isatty() and not as_json else ""
    try:
        while True:
            try:
                text = _shown(collected(data, url), as_json, is_line=True)
            except click.ClickException as problem:
                if as_json:
                    raise
                text = f"divandb: {problem.format_message()}"
            click.echo(f"{clear}{text}" if clear or as_json else f"{text}\n")
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return


def _shown(found: dict[str, Any], as_json: bool, *, is_line: bool = False) -> str:
    if not as_json:
        return as_text(found)
    data = msgspec.json.encode(found)
    return (data if is_line else msgspec.json.format(data, indent=2)).decode()


def _refusals(found: dict[str, Any]) -> list[str]:
    return [f"{node['name']}: {node['refused']}" for node in found["nodes"] if node["refused"]]


def collected(data: Path, url: str | None) -> dict[str, Any]:
    """``{"url", "pid", "nodes": […]}``; raises ``click.ClickException``."""
    try:
        found = asyncio.run(_of_folder(data) if url is None else _of_url(url))
        return {**found, "groups": grouped(found["nodes"])}
    except (datadir.DataDirError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None


def authorization_of(data: Path, url: str | None) -> str | None:
    """With what nodes are asked; raises ``click.ClickException``."""
    try:
        if url is None:
            return _as_member(datadir.read_secret(data))
        return basic(credentials_in(url, os.environ.get("DIVANDB_ADMIN"))[1])
    except (datadir.DataDirError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None


def grouped(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each slot's owner and how many of its nodes answer; sets the nodes' roles by that."""
    said = [(slot, one) for node in nodes for slot, one in node.get("owners", {}).items()]
    groups: dict[str, dict[str, Any]] = {}
    for slot, one in sorted(said, key=lambda pair: (pair[1]["epoch"], pair[1]["confirmed"])):
        groups[slot] = {"owner": one["name"], "epoch": one["epoch"], "up": 0, "members": 0}
        groups[slot]["switching"] = []
    for node in nodes:
        group = groups.get(node.get("slot") or node["master"] or node["name"])
        if node["role"] in BOARDS or group is None:
            continue
        is_owner = node["name"] == group["owner"]
        node["role"] = MASTER if is_owner else REPLICA
        node["master"] = None if is_owner else group["owner"]
        group["members"] += 1
        group["up"] += bool(node["up"])
        _note_versions(group["switching"], node)
    return dict(sorted(groups.items(), key=lambda pair: (len(pair[0]), pair[0])))


def _note_versions(group: list[dict[str, Any]], node: dict[str, Any]) -> None:
    """Add what a node says of new versions of design documents to what its group says."""
    for one in (node.get("indexes") or {}).get("switching", []):
        what = {name: one[name] for name in ("database", "design_document", "in_use", "next")}
        found = next((other for other in group if what.items() <= other.items()), None)
        if found is None:
            found = {**what, "ready": [], "building": [], "waits_for": []}
            group.append(found)
        found["ready" if one["ready"] else "building"].append(node["name"])
        found["waits_for"] = sorted({*found["waits_for"], *one["waits_for"]})


def compare(nodes: list[dict[str, Any]]) -> None:
    """Set each node's ``lag_events`` to every master that has answered: what that has and it has
    not. A node itself knows only what it last heard.
    """
    answered = [node for node in nodes if "vector" in node]
    for master in answered:
        if master["role"] != "master":
            continue
        for node in answered:
            if node.get("closed_origins") != master.get("closed_origins"):
                continue  # just now they leave different origins out of what they show
            behind = sum(
                max(oseq - node["vector"].get(origin, 0), 0)
                for origin, oseq in master["vector"].items()
            )
            slot = node["slots"].setdefault(master["slot"], {"lag_ms": None})
            slot["lag_events"] = behind


# A cluster under a supervisor


async def _of_folder(data: Path) -> dict[str, Any]:
    cluster = datadir.read_cluster(data)
    if cluster is None:
        raise click.ClickException(f"nothing runs in {data}")
    authorization = _as_member(datadir.read_secret(data))
    up = [one for one in cluster.nodes if one.pid is not None]
    answers = await ask_all(
        {one.name: (one.url, _path(one.role)) for one in up if one.role != BROKER}, authorization
    )
    answers |= {one.name: await greet(one.url) for one in up if one.role == BROKER}
    nodes = [_of_record(one, answers.get(one.name), data) for one in cluster.nodes]
    nodes += await _elsewhere(nodes, authorization)
    compare(nodes)
    return {"url": cluster.url, "pid": cluster.pid, "nodes": nodes}


def _as_member(secret: bytes) -> str:
    """Whoever can read the folder's secret may ask as the nodes ask each other."""
    keys = trust.keys_of(secret, "status", REPLICA, "", is_master=False)
    return trust.SCHEME + keys.token


def _path(role: str) -> str:
    return BOARD_UP if role == BOARD else NODE_STATUS


def _of_record(record: NodeRecord, answer: Asked | None, data: Path) -> dict[str, Any]:
    copying = arriving(data / record.name) if answer is None or not answer.is_up else None
    return {
        **msgspec.to_builtins(record),
        **_condition(answer, is_board=record.role in BOARDS),
        "copying": None if copying is None else msgspec.to_builtins(copying),
    }


def _condition(answer: Asked | None, *, is_board: bool = False) -> dict[str, Any]:
    """What one answer, or its absence, says."""
    if answer is None:
        return {"up": False, "state": "down", "refused": None}
    body = {} if is_board or answer.body is None else answer.body
    said = {key: value for key, value in body.items() if key not in _PLACE}
    return {
        **said,
        "up": answer.is_up,
        "state": answer.state,
        "refused": answer.refused,
    }


# A cluster anywhere


async def _of_url(url: str) -> dict[str, Any]:
    place, admin = credentials_in(url, os.environ.get("DIVANDB_ADMIN"))
    authorization = basic(admin)
    first = (await ask_all({"": (place, NODE_STATUS)}, authorization))[""]
    if first.body is None:
        raise click.ClickException(f"{place}: {first.refused or first.state}")
    me = _of_answer(first.body["name"], first, first.body)
    nodes = sorted([me, *await _elsewhere([me], authorization)], key=_order)
    compare(nodes)
    return {"url": place, "pid": None, "nodes": nodes}


def _order(node: dict[str, Any]) -> tuple[str, int, str]:
    """Masters before replicas, m2 before m10."""
    return node["role"], len(node["name"]), node["name"]


async def _elsewhere(
    known: list[dict[str, Any]], authorization: str | None
) -> list[dict[str, Any]]:
    """The nodes that the known ones speak of and that are not among them."""
    names = {node["name"] for node in known}
    others: dict[str, dict[str, Any]] = {}
    for node in known:
        for peer in node.get("peers") or []:
            if peer["name"] not in names and len(others) < NODES_MAX:
                others.setdefault(peer["name"], peer)
    answers = await ask_all(
        {name: (one["url"], NODE_STATUS) for name, one in others.items()}, authorization
    )
    return [_of_answer(name, answers[name], one) for name, one in others.items()]


def _of_answer(name: str, answer: Asked, told: dict[str, Any]) -> dict[str, Any]:
    """A node of which there is no record here: what it says, or what its peers say."""
    is_replica = told["role"] == "replica"
    said = answer.body or {}
    return {
        "name": name,
        "role": told["role"],
        "master": told["slot"] if is_replica else None,
        "url": told["url"],
        "pid": said.get("pid"),
        "restarts": None,
        "started_at": said.get("started"),
        **_condition(answer),
        "copying": None,
    }
