"""`divandb add`: a further replica or master, while the cluster goes on."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click

from divandb import configfile, datadir, hosts
from divandb.cli import boards, options, plan
from divandb.cli.asking import ask
from divandb.cli.folder import alone, board_of, running, tell
from divandb.clock import Clock, SystemClock
from divandb.cluster import trust
from divandb.config import MASTER, REPLICA, BoardAccess, Member, TlsFiles, limits_from
from divandb.configfile import BoardFile, NodeFile
from divandb.datadir import BROKER, ClusterRecord, DataDirError, NodeRecord, PlannedNode
from divandb.layout import with_master, with_replica

REPLICAS_MAX = 64
NODES_MAX = 256
POLL_S = 0.05
NODE_PORT = 6985


@click.command()
@click.argument("what", type=click.Choice([REPLICA, MASTER]))
@click.option("--to", "slot", metavar="MASTER", help="With `replica`: the master that it follows.")
@click.option(
    "--replicas",
    type=click.IntRange(0, REPLICAS_MAX),
    default=0,
    show_default=True,
    help="With `master`: so many replicas of its own.",
)
@options.data
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for its answer.",
)
@click.option(
    "--print-config",
    "prints",
    is_flag=True,
    help="Run nothing here; print the file of a node that runs on another host.",
)
@click.option(
    "--host", callback=plan.host_in, help="With --print-config: the host, as the others reach it."
)
@click.option(
    "--node-port",
    type=click.IntRange(1, 65535),
    help="With --print-config: its own port.  [default: 6985, or the next that no node has]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="With --print-config: a port for clients beside its own.",
)
def add(
    what: str,
    slot: str | None,
    replicas: int,
    data: Path,
    timeout: float,
    prints: bool,
    host: str | None,
    node_port: int | None,
    port: int | None,
) -> None:
    """Add a replica or a master to a running cluster.

    WHAT is `replica` or `master`. With what `divandb up` runs in the data folder, the new node is
    started there; with --print-config its file is printed, for a host of its own.
    """
    _check_usage(what, slot, replicas)
    if (host is None) == prints or (not prints and (node_port or port)):
        raise click.UsageError("--host, --node-port and --port go with --print-config.")
    if prints and replicas:
        raise click.UsageError("with --print-config, add replicas one by one.")
    with _one_line_errors():
        if prints:
            assert host is not None
            click.echo(_printed(data, slot, _Place(host, node_port, port)), nl=False)
            return
        for record in grow(data, slot, replicas, timeout, SystemClock()):
            click.echo(f"{record.name}  {record.url}")


def _check_usage(what: str, slot: str | None, replicas: int) -> None:
    if what == REPLICA and slot is None:
        raise click.UsageError("`divandb add replica` needs --to MASTER.")
    if what == MASTER and slot is not None:
        raise click.UsageError("--to is for `divandb add replica`.")
    if replicas and what == REPLICA:
        raise click.UsageError("--replicas is for `divandb add master`.")


def chosen(
    nodes: list[PlannedNode], slot: str | None, replicas: int, removed: Sequence[str] = ()
) -> list[PlannedNode]:
    """A replica of the slot, or a master with so many replicas; raises ``ValueError``."""
    if slot is not None:
        made = [with_replica(nodes, slot, removed)]
    else:
        made = [with_master(nodes)]
        for _ in range(replicas):
            made.append(with_replica([*nodes, *made], made[0].slot))
    if len(nodes) + len(made) > NODES_MAX:
        raise ValueError(f"a cluster has at most {NODES_MAX} nodes")
    return made


# On this machine


def grow(
    data: Path, slot: str | None, replicas: int, timeout_s: float, clock: Clock
) -> list[NodeRecord]:
    """Let the supervisor start the new nodes; their records, once all of them answer.

    Raises ``ValueError`` or ``DataDirError``.
    """
    with alone(data):
        cluster = running(data)
        nodes = datadir.read_members(data)
        made = chosen(nodes, slot, replicas, datadir.read_removed(data))
        # The boards make topics and principals, then the supervisor starts the nodes that use them.
        _write(data, cluster, nodes, made)
    os.kill(cluster.pid, signal.SIGUSR1)
    return _awaited(data, [one.name for one in made], timeout_s, clock)


def _write(
    data: Path, cluster: ClusterRecord, nodes: list[PlannedNode], made: list[PlannedNode]
) -> None:
    """Have the new nodes in the folder, and on the boards."""
    datadir.write_members(data, [*nodes, *made])
    board = board_of(cluster)
    if board is not None:
        tell(board, signal.SIGHUP)
        return
    try:
        boards.set_up(data, cluster.board, is_new=True)
    except ValueError:
        datadir.write_members(data, nodes)
        raise


def _awaited(data: Path, names: list[str], timeout_s: float, clock: Clock) -> list[NodeRecord]:
    deadline = clock.monotonic() + timeout_s
    silent, found = list(names), dict[str, NodeRecord]()
    while True:
        cluster = datadir.read_cluster(data)
        if cluster is None:
            raise DataDirError(f"what ran in {data} has ended")
        for record in cluster.nodes:
            if record.name in silent and _answers(record):
                silent.remove(record.name)
                found[record.name] = record
        if not silent:
            return [found[name] for name in names]
        if clock.monotonic() > deadline:
            raise DataDirError(
                f"no answer from {', '.join(silent)} in {timeout_s:g} s: it may still come, "
                "see `divandb status` and the log"
            )
        time.sleep(POLL_S)


def _answers(record: NodeRecord) -> bool:
    if record.pid is None:
        return False
    answer = asyncio.run(ask(record.url, "/_up", None))
    return answer.is_up and answer.refused is None


# On another host


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a new node will be."""

    host: str
    node_port: int | None
    port: int | None


def _printed(data: Path, slot: str | None, place: _Place) -> str:
    """Tell the board of a new node on another host; the node's file."""
    with alone(data):
        is_of_files = (data / plan.BOARD_FILE).exists()
        file = (_of_files if is_of_files else _of_folder)(data, slot, place)
    name, copy = file.config.name, f"copy it to {place.host}"
    if is_of_files and file.config.board is not None and file.config.board.is_kafka:
        copy += f",\nrun `divandb board init --config {data / plan.BOARD_FILE}`"
    elif is_of_files:
        copy += f",\ncopy {data / plan.BOARD_FILE} to the board's host and send the board a SIGHUP"
    click.echo(
        f"This is {name}.toml. Keep it secret, {copy}.\n"
        f"Then run on {place.host}: divandb node --config {name}.toml",
        err=True,
    )
    return configfile.node_text(file)


def _of_files(data: Path, slot: str | None, place: _Place) -> NodeFile:
    """In a folder that `divandb up --print-config` has written."""
    path = data / plan.BOARD_FILE
    board = configfile.read_boards(path, {})
    known = list(board.members)
    tls = hosts.PLAIN
    if isinstance(board, BoardFile):
        access, port_min = BoardAccess(board.url, "", ""), board.port + 1
        shown = board.config.tls.certificate
        tls = tls if shown is None else hosts.tls_in(shown.parent)
    else:
        access, port_min = hosts.nobody(board.admin), NODE_PORT
    file = _file(data, known, slot, place, access, port_min, tls)
    if board.cluster != file.config.keys.cluster or file.config.board is None:
        raise ValueError(f"{path} and {data / 'secret'} are of two clusters")
    secrets = trust.board_secrets(datadir.read_secret(data), [file.config.member])
    member = configfile.member_text(file.config.member, secrets)
    text = configfile.read_text(path).rstrip("\n")
    datadir.write_private(path, f"{text}\n\n{member}")
    return file


def _of_folder(data: Path, slot: str | None, place: _Place) -> NodeFile:
    """Beside what `divandb up` runs."""
    cluster = running(data)
    board = board_of(cluster)
    seen = _seen(cluster, board)
    if _is_loopback(seen) and not _is_loopback(hosts.url_of(place.host, NODE_PORT)):
        raise ValueError(
            f"the cluster in {data} listens where {place.host} cannot reach it, at {seen}: "
            "start it with --host and an address that other hosts know"
        )
    nodes = datadir.read_members(data)
    urls = {one.name: one.url for one in cluster.nodes}
    known = [
        Member(one.name, one.role, one.slot, one.url or urls[one.name])
        for one in nodes
        if one.url or one.name in urls
    ]
    if board is None:
        access = hosts.nobody(boards.given(data, cluster.board)[0])
    else:
        access = BoardAccess(board.url, "", "")
    file = _file(data, known, slot, place, access, NODE_PORT)
    me = file.config.member
    # What the other host knows stays where it is.
    datadir.write_ports(data, {name: urlsplit(url).port or 0 for name, url in urls.items()})
    _write(data, cluster, nodes, [PlannedNode(me.name, me.role, me.slot, me.url)])
    return file


def _seen(cluster: ClusterRecord, board: NodeRecord | None) -> str:
    """Where what a node needs is listening, as far as it is on this machine."""
    if board is not None:
        return board.url
    own = [one.url for one in cluster.nodes if one.role == BROKER]
    return own[0] if own else cluster.url


def _file(
    data: Path,
    known: list[Member],
    slot: str | None,
    place: _Place,
    access: BoardAccess,
    port_min: int,
    tls: TlsFiles = hosts.PLAIN,
) -> NodeFile:
    nodes = [PlannedNode(one.name, one.role, one.slot) for one in known]
    made = chosen(nodes, slot, 0, datadir.read_removed(data))[0]
    used = {urlsplit(one.url).port for one in known}
    free = next(port for port in range(port_min, port_min + NODES_MAX + 1) if port not in used)
    node_port = place.node_port or free
    admin = os.environ.get("DIVANDB_ADMIN") or datadir.read_admin(data)
    if admin is None:
        raise DataDirError(f"{data / 'admin'} is missing, and DIVANDB_ADMIN is not set")
    return hosts.node_file(
        datadir.read_secret(data),
        Member(made.name, made.role, made.slot, hosts.url_of(place.host, node_port, tls)),
        known,
        access,
        host=hosts.listening_on(place.host),
        node_port=node_port,
        port=place.port,
        data=Path("divan-data") / made.name,
        admin=admin,
        limits=limits_from(os.environ),
        tls=tls,
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (DataDirError, ValueError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
