"""`divandb up`: run the database until it is told to stop."""

import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from divandb import datadir, localkafka, streams
from divandb.cli import boards, options, plan
from divandb.clock import SystemClock, SystemRng
from divandb.config import BoardAccess, limits_from
from divandb.configfile import kafka_given, zone_given
from divandb.datadir import PlannedNode
from divandb.hosts import nobody
from divandb.layout import Layout, broker_spec, is_new, needs_board, planned, specs
from divandb.localkafka import LOCAL, BrokerError
from divandb.supervisor import Bounds, ChildSpec, StartError, Supervisor
from divandb.telemetry import LineLog

MASTERS = 3
REPLICAS = 3
MASTERS_MAX = 64
REPLICAS_MAX = 64


@click.command()
@click.option(
    "--masters",
    type=click.IntRange(1, MASTERS_MAX),
    help="Nodes that take writes.  [default: 3, or those that the folder has]",
)
@click.option(
    "--replicas",
    type=click.IntRange(0, REPLICAS_MAX),
    help="Readers for each master.  [default: 3, or those that the folder has]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5984,
    show_default=True,
    help="The port for clients; 0 takes a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@options.data
@click.option(
    "--admin",
    metavar="USER:PASSWORD",
    envvar="DIVANDB_ADMIN",
    show_envvar=True,
    callback=options.credentials,
    help="The admin of this start; never written down. Without it, DATA/admin is made and used.",
)
@options.kafka
@click.option("--no-restart", is_flag=True, help="Leave a node that dies down.")
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Kill a node that has not ended this long after a stop.",
)
@click.option(
    "--print-config",
    "prints",
    is_flag=True,
    help="Run nothing; write the files of a cluster over several hosts.",
)
@click.option(
    "--hosts",
    "several",
    metavar="H1,H2,...",
    callback=plan.hosts_in,
    help="With --print-config: the hosts, as they reach each other.",
)
@click.option(
    "--board-host",
    metavar="HOST",
    callback=plan.host_in,
    help="With --print-config: the host of the Event Boards.  [default: the first]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --print-config: the folder for the files.",
)
@click.option(
    "--tls",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    callback=plan.folder_in,
    help="With --print-config: TLS everywhere, with the certificates in this folder of each host.",
)
def up(
    masters: int | None,
    replicas: int | None,
    port: int,
    host: str,
    data: Path,
    admin: str | None,
    url: str | None,
    no_restart: bool,
    stop_timeout: float,
    prints: bool,
    several: tuple[str, ...],
    board_host: str | None,
    out: Path | None,
    tls: Path | None,
) -> None:
    """Run the database, and start its processes again when they die.

    SIGTERM or Ctrl-C stops it cleanly; a second Ctrl-C at once.
    """
    if prints:
        click.echo(
            _printed(masters, replicas, port, data, admin, url, several, board_host, out, tls)
        )
        return
    if several or board_host or out or tls:
        raise click.UsageError("--hosts, --board-host, --out and --tls need --print-config.")
    clock = SystemClock()
    os.umask(0o077)  # what the database writes is for its owner only
    with _one_line_errors():
        limits = limits_from(os.environ)
        bounds = Bounds(stop_s_max=stop_timeout, starved_s_max=limits.starved_ms_max / 1000)
        datadir.make(data)
        with datadir.locked(data, clock, orphan_s_max=bounds.stop_s_max):
            known = admin or datadir.make_admin(data, SystemRng())
            nodes = _nodes(data, masters, replicas)
            secret = datadir.make_secret(data, SystemRng())
            if needs_board(nodes) or url is not None:
                streams.warm()
            founding = is_new(data, nodes)
            brokers = []
            if url == LOCAL:
                url = _own_broker(data)
                brokers = [broker_spec(url)]
            elif url is not None:
                boards.set_up(data, url, is_new=founding)
            kafka = None if url is None else _on_kafka(data, url)
            whole = Layout(
                data, known, limits, secret, founding=founding, kafka=kafka,
                zone=zone_given(os.environ),
            )  # fmt: skip

            def plan_now() -> list[ChildSpec]:
                members, ports = datadir.read_members(data), datadir.read_ports(data)
                return brokers + specs(members, ports, has_board=kafka is None)

            def prepare() -> None:
                if brokers:
                    boards.set_up(data, url or "", is_new=founding)

            supervisor = Supervisor(
                data,
                host,
                port,
                plan_now(),
                whole.serve,
                clock,
                LineLog("supervisor", clock),
                grow=plan_now,
                restart=not no_restart,
                bounds=bounds,
                board=url or "",
                prepare=prepare,
            )
            given = admin is not None

            def ready(now: datadir.ClusterRecord) -> None:
                whole.is_starting = False
                click.echo(greeting(now.url, data, known, given))

            status = supervisor.run(ready)
    sys.exit(status)


def _printed(
    masters: int | None, replicas: int | None, port: int, data: Path, admin: str | None,
    url: str | None, several: tuple[str, ...], board_host: str | None, out: Path | None,
    tls: Path | None,
) -> str:  # fmt: skip
    """Write the files of a cluster over several hosts; what to do with them."""
    if not several or out is None:
        raise click.UsageError("--print-config needs --hosts and --out.")
    nodes = _wanted(masters, replicas)
    plan.check_ports(port, len(nodes))
    with _one_line_errors():
        if url is not None and board_host is not None:
            raise click.UsageError("--board-host is for the embedded board.")
        if url == LOCAL:
            raise click.UsageError(f"{LOCAL} is for one machine: give --board kafka://HOST:PORT.")
        limits = limits_from(os.environ)
        made = plan.make_plan(
            out, several, board_host, port, data, admin, limits, SystemRng(), tls,
            None if url is None else kafka_given(url, os.environ),
        )  # fmt: skip
        return plan.write(made, nodes, out)


def _own_broker(data: Path) -> str:
    """Where the folder's own broker will be; raises ``BrokerError`` if there is none to run."""
    localkafka.jars_of(os.environ)
    return localkafka.kept(data, SystemRng()).url


def _on_kafka(data: Path, url: str) -> BoardAccess:
    """How nodes open the boards on Kafka, which are set up by then."""
    importlib.import_module("divandb.board.kafka")  # once, for all nodes
    return nobody(boards.given(data, url)[0])


def _wanted(masters: int | None, replicas: int | None) -> list[PlannedNode]:
    return planned(
        MASTERS if masters is None else masters, REPLICAS if replicas is None else replicas
    )


def _nodes(data: Path, masters: int | None, replicas: int | None) -> list[PlannedNode]:
    """The nodes of the folder, and those that the options add to them."""
    nodes = datadir.read_members(data)
    if nodes and masters is None and replicas is None:
        return nodes
    wanted = _wanted(masters, replicas)
    missing = [node.name for node in nodes if node not in wanted]
    if missing:
        raise datadir.DataDirError(
            f"{data} has more nodes than that: {', '.join(missing)}; leave the options out"
        )
    gone = datadir.read_removed(data)
    nodes += [node for node in wanted if node not in nodes and node.name not in gone]
    datadir.write_members(data, nodes)
    return nodes


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (StartError, BrokerError, datadir.DataDirError, ValueError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


def greeting(url: str, data: Path, admin: str, given: bool) -> str:
    """What is printed when the database answers: where it is, and how to log in."""
    user = admin.partition(":")[0]
    if given:
        password, login = "the one you gave", shlex.quote(user)
    else:
        file = data / "admin"
        password, login = f"in {file}", f'"$(cat {shlex.quote(str(file))})"'
    return (
        "DivanDB is ready.\n"
        f"  URL        {url}\n"
        f"  admin      {user}\n"
        f"  password   {password}\n"
        f"  log in     curl -u {login} {url}/_session"
    )
