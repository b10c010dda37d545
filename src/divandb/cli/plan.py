"""`divandb up --print-config`: the files of a cluster over several hosts."""

import os
from pathlib import Path

import click

from divandb import datadir, hosts
from divandb.clock import Rng
from divandb.config import BoardAccess, Limits, TopicSettings
from divandb.configfile import board_text, kafka_text, node_text
from divandb.datadir import DataDirError, PlannedNode
from divandb.hosts import Plan

BOARD_FILE = "board.toml"
PORT_MAX = 65535
TLS_TEXT = """On each host {folder} must hold `tls.crt`, a certificate of the host's name as
--hosts has it, its key as `tls.key`, and as `ca.crt` the authority that has signed them all.

"""


def hosts_in(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """The hosts of an option, between commas."""
    found = tuple((value or "").split(",")) if value else ()
    if len(set(found)) < len(found):
        raise click.BadParameter("names a host twice")
    return tuple(checked(host) for host in found)


def host_in(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The host of an option."""
    return None if value is None else checked(value)


def checked(host: str) -> str:
    """The host, if it can be one."""
    try:
        return hosts.check_host(host)
    except ValueError:
        raise click.BadParameter(f"{host!r} is no host name and no address") from None


def folder_in(ctx: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """The folder of an option, as it is on every host."""
    if value is not None and not value.is_absolute():
        raise click.BadParameter(f"{value} must begin with /: it is the same on every host")
    return value


def check_ports(port: int, nodes: int) -> None:
    """Are there so many ports above the clients'?"""
    if not 0 < port <= PORT_MAX - hosts.BOARD_PORT_OFFSET - nodes:
        raise click.BadParameter(
            f"with --print-config it must be a port below {PORT_MAX - 1000 - nodes + 1}: the board "
            "and the nodes have those from 1000 above it on",
            param_hint="'--port'",
        )


def make_plan(
    out: Path, on: tuple[str, ...], board_host: str | None, port: int, data: Path,
    admin: str | None, limits: Limits, rng: Rng, tls: Path | None = None,
    kafka: tuple[BoardAccess, TopicSettings] | None = None,
) -> Plan:  # fmt: skip
    """What the files are made from, with a fresh secret; makes the folder ``out``."""
    datadir.make(out)
    for name in (BOARD_FILE, "secret"):
        if (out / name).exists():
            raise DataDirError(f"{out / name} is there already: give another folder")
    if admin is not None:
        datadir.write_private(out / "admin", f"{admin}\n")
    known = admin or datadir.make_admin(out, rng)
    secret = datadir.make_secret(out, rng)
    files = hosts.PLAIN if tls is None else hosts.tls_in(tls)
    return Plan(on, board_host or on[0], port, data, known, secret, limits, files, kafka)


def write(plan: Plan, nodes: list[PlannedNode], out: Path) -> str:
    """Write the files; what to do with them."""
    files = hosts.node_files(plan, nodes)
    for name, file in files.items():
        datadir.write_private(out / f"{name}.toml", node_text(file))
    known = hosts.members(plan, nodes)
    if plan.kafka is None:
        text = board_text(hosts.board_file(plan, known))
        first = f"{plan.board_host:{_width(plan)}}  divandb board --config {BOARD_FILE}"
    else:
        text = kafka_text(hosts.kafka_file(plan, known))
        first = f"{'once':{_width(plan)}}  divandb board init --config {BOARD_FILE}"
    datadir.write_private(out / BOARD_FILE, text)
    placed = hosts.spread(nodes, plan.hosts)
    lines = [
        f"  {first}",
        *(f"  {placed[name]:{_width(plan)}}  divandb node --config {name}.toml" for name in files),
    ]
    shown = plan.tls.certificate
    tls = "" if shown is None else TLS_TEXT.format(folder=shown.parent)
    return (
        f"{os.fspath(out)} holds the files of the boards and {len(files)} nodes, readable by you "
        "alone, and\n"
        "`admin`, the admin of them all. Copy each to its host, for the database's user to read.\n"
        "Keep the folder: `divandb add` makes further nodes with the `secret` in it.\n\n"
        f"{tls}"
        "Start them in this order; each waits for those that are not there yet:\n\n"
        + "\n".join(lines)
    )


def _width(plan: Plan) -> int:
    return max(map(len, (*plan.hosts, "once")))
