"""A cluster over several hosts: which process runs where, and the file that each is started with.

Masters are dealt out over the hosts. A replica never shares a host with its master if there is
another: beside it, it would die with the host, and nobody would be left who can take the master's
place at once. The cost is a hop over the network between a write and its replicas.

Ports are the same on every host, so that a firewall needs one rule: P for clients, P + 1000 for the
board, then one for each node. Nodes listen on every address of their host, unless it is given by
its address.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from divandb.board.embedded_server import BoardConfig
from divandb.cluster import trust
from divandb.cluster.topics import principal_of
from divandb.config import (
    MASTER,
    REPLICA,
    BoardAccess,
    Config,
    Limits,
    Member,
    TlsFiles,
    TopicSettings,
)
from divandb.configfile import BOARD_ADMIN, BoardFile, KafkaFile, NodeFile
from divandb.datadir import PlannedNode

BOARD_PORT_OFFSET = 1000
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
ALL_ADDRESSES = "0.0.0.0"
PLAIN = TlsFiles()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the files are made from."""

    hosts: tuple[str, ...]
    board_host: str
    port: int
    """For clients, on every host."""
    data: Path
    """Each process has a folder in this one."""
    admin: str
    secret: bytes
    limits: Limits
    tls: TlsFiles = PLAIN
    """The same on every host; empty: plain HTTP."""
    kafka: tuple[BoardAccess, TopicSettings] | None = None
    """The admin of boards on Apache Kafka, and how topics are made there; ``None``: the embedded
    board.
    """

    @property
    def board_url(self) -> str:
        """Where the embedded board is."""
        return url_of(self.board_host, self.port + BOARD_PORT_OFFSET, self.tls)

    @property
    def boards(self) -> BoardAccess:
        """Where the boards are, whoever opens them."""
        if self.kafka is not None:
            return nobody(self.kafka[0])
        return BoardAccess(self.board_url, "", "")


def check_host(host: str) -> str:
    """The host; raises ``ValueError`` for what is neither a name nor an address."""
    if not HOST_NAME.fullmatch(host):
        ipaddress.ip_address(host)
    return host


def url_of(host: str, port: int, tls: TlsFiles = PLAIN) -> str:
    """The URL of what listens there."""
    scheme = "http" if tls.certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls_in(folder: Path) -> TlsFiles:
    """The files of this folder, by the names that Kubernetes and cert-manager give them."""
    return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


def listening_on(host: str) -> str:
    """The address to listen on: a name may stand for one that only the host itself reaches."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ALL_ADDRESSES


def spread(nodes: Sequence[PlannedNode], hosts: Sequence[str]) -> dict[str, str]:
    """Node → host; see the head of this module."""
    slots = [node.slot for node in nodes if node.role == MASTER]
    placed = {}
    replicas = dict.fromkeys(slots, 0)
    for node in nodes:
        home = slots.index(node.slot)
        if node.role == REPLICA:
            # The others in turn, beginning with the next.
            step = 1 + replicas[node.slot] % (len(hosts) - 1) if len(hosts) > 1 else 0
            home += step
            replicas[node.slot] += 1
        placed[node.name] = hosts[home % len(hosts)]
    return placed


def members(plan: Plan, nodes: Sequence[PlannedNode]) -> list[Member]:
    """The nodes with the URLs that they get."""
    placed = spread(nodes, plan.hosts)
    first = plan.port + BOARD_PORT_OFFSET + 1
    return [
        Member(node.name, node.role, node.slot, url_of(placed[node.name], port, plan.tls))
        for port, node in enumerate(nodes, first)
    ]


def node_files(plan: Plan, nodes: Sequence[PlannedNode]) -> dict[str, NodeFile]:
    """Name → file."""
    known = members(plan, nodes)
    placed = spread(nodes, plan.hosts)
    has_replicas = any(node.role == REPLICA for node in nodes)
    first = plan.port + BOARD_PORT_OFFSET + 1
    return {
        one.name: node_file(
            plan.secret,
            one,
            known,
            plan.boards,
            host=listening_on(placed[one.name]),
            node_port=port,
            port=plan.port if one.role == REPLICA or not has_replicas else None,
            data=plan.data / one.name,
            admin=plan.admin,
            limits=plan.limits,
            tls=plan.tls,
        )
        for port, one in enumerate(known, first)
    }


def node_file(
    secret: bytes,
    me: Member,
    known: Sequence[Member],
    boards: BoardAccess,
    *,
    host: str,
    node_port: int,
    port: int | None,
    data: Path,
    admin: str,
    limits: Limits,
    tls: TlsFiles = PLAIN,
) -> NodeFile:
    """The file of one node; its seeds are all others that are known. ``boards``: see
    ``Plan.boards``.
    """
    is_master = me.role == MASTER
    config = Config(
        data=data,
        name=me.name,
        role=me.role,
        slot=me.slot,
        url=me.url,
        admin=admin,
        board=dataclasses.replace(
            boards, principal=principal_of(me), secret=trust.board_secret(secret, principal_of(me))
        ),
        keys=trust.keys_of(secret, me.name, me.role, me.slot, is_master=is_master),
        spare=trust.spare_of(secret, me),
        tls=tls,
        seeds=tuple(one for one in known if one.name != me.name),
        limits=limits,
    )
    return NodeFile(config, host, node_port, port)


def nobody(access: BoardAccess) -> BoardAccess:
    """The same boards, without name and secret."""
    return dataclasses.replace(access, principal="", secret="")


def kafka_file(plan: Plan, known: Sequence[Member]) -> KafkaFile:
    """What `divandb board init` makes."""
    assert plan.kafka is not None
    admin, settings = plan.kafka
    return KafkaFile(
        admin,
        trust.keys_of(plan.secret, "", "", "", is_master=False).cluster,
        tuple(known),
        trust.board_secrets(plan.secret, known),
        settings,
    )


def board_file(plan: Plan, known: Sequence[Member]) -> BoardFile:
    """The board's file."""
    admins: Mapping[str, str] = {BOARD_ADMIN: trust.board_secret(plan.secret, BOARD_ADMIN)}
    return BoardFile(
        BoardConfig(plan.data / "board", admins, tls=dataclasses.replace(plan.tls, ca=None)),
        listening_on(plan.board_host),
        plan.port + BOARD_PORT_OFFSET,
        plan.board_url,
        trust.keys_of(plan.secret, "", "", "", is_master=False).cluster,
        tuple(known),
        trust.board_secrets(plan.secret, known),
    )
