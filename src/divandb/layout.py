"""A cluster on one machine: its nodes, and the configuration of each.

The data folder remembers the nodes (``members.json``) and the cluster's secret, so that a later
start brings back what was added to a running cluster:

    DATA/secret        64 hex digits, mode 0600: all credentials come from it
    DATA/members.json  name, role and slot of every node, and the URL of those on other hosts
    DATA/ports.json    ports that nodes on other hosts know
    DATA/readers.json  who else may read the Masters' Event Board
    DATA/board         the embedded board
    DATA/kafka         a Kafka broker of its own
    DATA/m1, m1-r1, …  a node each
"""

import asyncio
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from divandb import datadir, localkafka
from divandb.board import embedded_server
from divandb.board.embedded_server import BoardConfig, Steward
from divandb.clock import SystemClock
from divandb.cluster import topics, trust
from divandb.config import MASTER, REPLICA, BoardAccess, Config, Limits, Member, TopicSettings
from divandb.configfile import BOARD_ADMIN, KafkaFile
from divandb.datadir import BOARD, BROKER, PlannedNode
from divandb.pulse import Sockets
from divandb.server import serve
from divandb.store.file import FILE_NAME
from divandb.supervisor import ChildSpec

CACHE_BYTES_MIN = 2 * 2**20


def planned(masters: int, replicas: int) -> list[PlannedNode]:
    """``m1`` to ``mN``, each with its replicas ``m1-r1`` and so on."""
    slots = [f"m{number}" for number in range(1, masters + 1)]
    return [PlannedNode(slot, MASTER, slot) for slot in slots] + [
        PlannedNode(f"{slot}-r{number}", REPLICA, slot)
        for slot in slots
        for number in range(1, replicas + 1)
    ]


def with_master(nodes: Sequence[PlannedNode]) -> PlannedNode:
    """The next master."""
    used = [topics.partition_of(node.slot) for node in nodes]
    slot = f"m{max(used, default=-1) + 2}"
    return PlannedNode(slot, MASTER, slot)


def with_replica(
    nodes: Sequence[PlannedNode], slot: str, removed: Sequence[str] = ()
) -> PlannedNode:
    """The next replica of a slot; the names of nodes that were removed are not given again. Raises
    ``ValueError`` if there is no such slot.
    """
    if not any(node.slot == slot for node in nodes):
        raise ValueError(f"there is no master {slot}")
    names = [node.name for node in nodes if node.slot == slot]
    names += [name for name in removed if name.startswith(f"{slot}-r")]
    numbers = [int(name.rpartition("-r")[2]) for name in names if "-r" in name]
    return PlannedNode(f"{slot}-r{max(numbers, default=0) + 1}", REPLICA, slot)


def needs_board(nodes: Sequence[PlannedNode]) -> bool:
    """A node without others tells nobody."""
    return len(nodes) > 1


def is_new(data: Path, nodes: Sequence[PlannedNode]) -> bool:
    """Has no node of the folder a file yet?"""
    return not any((data / node.name / FILE_NAME).exists() for node in nodes)


def specs(
    nodes: Sequence[PlannedNode], ports: Mapping[str, int], *, has_board: bool = True
) -> list[ChildSpec]:
    """The processes of this machine; clients are served by replicas, by masters if there are none.

    ``ports``: of those that must have the same at every start. ``has_board``: the board is one of
    them, if the nodes need any.
    """
    here = [node for node in nodes if not node.url]
    has_replicas = any(node.role == REPLICA for node in here)
    board = ChildSpec(BOARD, BOARD, None, serves_clients=False, port=ports.get(BOARD, 0))
    return [board] * (has_board and needs_board(nodes)) + [
        ChildSpec(
            node.name,
            node.role,
            node.slot if node.role == REPLICA else None,
            serves_clients=node.role == REPLICA or not has_replicas,
            port=ports.get(node.name, 0),
        )
        for node in here
    ]


def broker_spec(url: str) -> ChildSpec:
    """The process of the folder's own Kafka broker."""
    return ChildSpec(
        BROKER,
        BROKER,
        None,
        serves_clients=False,
        url=url,
        greeting=localkafka.API_VERSIONS,
        is_first=True,
    )


@dataclasses.dataclass
class Layout:
    """All that is needed to run any of the processes."""

    data: Path
    admin: str
    limits: Limits
    secret: bytes
    founding: bool = False
    """No node had a file when the cluster was started."""
    kafka: BoardAccess | None = None
    """Where the boards on Apache Kafka are, whoever opens them; ``None``: the board is embedded."""
    zone: str = ""
    """Where this machine is; may be empty."""
    is_starting: bool = True
    """Until all nodes have answered; the supervisor's process says when, and those that it starts
    later know.
    """

    def serve(self, spec: ChildSpec, urls: Mapping[str, str], sockets: Sockets) -> None:
        """Run one process until it is told to stop."""
        if spec.role == BOARD:
            embedded_server.serve(self.board_config(), [sockets.own])
        elif spec.role == BROKER:
            localkafka.run(self.data, SystemClock(), os.environ)
        else:
            serve(self.node_config(spec, urls), sockets)

    def board_config(self) -> BoardConfig:
        """The embedded board's."""
        admins = {BOARD_ADMIN: trust.board_secret(self.secret, BOARD_ADMIN)}
        return BoardConfig(self.data / BOARD, admins, arrange=self._arrange)

    async def _arrange(self, steward: Steward) -> None:
        """Make topics and principals of the nodes that the folder names by then."""
        nodes = await asyncio.to_thread(datadir.read_members, self.data)
        members = [Member(node.name, node.role, node.slot, "") for node in nodes]
        secrets = trust.board_secrets(self.secret, members)
        cluster = trust.keys_of(self.secret, "", "", "", is_master=False).cluster
        readers = await asyncio.to_thread(datadir.read_readers, self.data)
        await topics.arrange(steward, cluster, members, secrets, readers)

    def node_config(self, spec: ChildSpec, urls: Mapping[str, str]) -> Config:
        """A node's; its seeds are all the others."""
        nodes = datadir.read_members(self.data)
        slots = {node.name: node for node in nodes}
        slot = slots[spec.name].slot
        keys = trust.keys_of(self.secret, spec.name, spec.role, slot, is_master=spec.role == MASTER)
        spare = trust.spare_of(self.secret, Member(spec.name, spec.role, slot, ""))
        others = [
            Member(node.name, node.role, node.slot, node.url or urls[node.name])
            for node in nodes
            if (node.url or node.name in urls) and node.name != spec.name
        ]
        folder = self.data / spec.name
        folder.mkdir(mode=0o700, exist_ok=True)
        return Config(
            data=folder,
            name=spec.name,
            role=spec.role,
            slot=slot,
            url=urls[spec.name],
            zone=self.zone,
            admin=self.admin,
            board=self._board(spec.name, urls),
            keys=keys,
            spare=spare,
            seeds=tuple(others),
            founding=self._is_founding(folder),
            limits=_shared(self.limits, len(nodes)),
        )

    def _board(self, name: str, urls: Mapping[str, str]) -> BoardAccess | None:
        """How a node opens the boards; a master is called as its slot is."""
        secret = trust.board_secret(self.secret, name)
        if self.kafka is not None:
            return dataclasses.replace(self.kafka, principal=name, secret=secret)
        return BoardAccess(urls[BOARD], name, secret) if BOARD in urls else None

    def _is_founding(self, folder: Path) -> bool:
        """When all start together, only a node that has lost its file looks for another."""
        return self.is_starting and (self.founding or (folder / FILE_NAME).exists())


def kafka_of(data: Path, admin: BoardAccess, settings: TopicSettings) -> KafkaFile:
    """Boards on Kafka for the nodes that the folder names by now."""
    secret = datadir.read_secret(data)
    members = [Member(one.name, one.role, one.slot, one.url) for one in datadir.read_members(data)]
    return KafkaFile(
        admin,
        trust.keys_of(secret, "", "", "", is_master=False).cluster,
        tuple(members),
        trust.board_secrets(secret, members),
        settings,
        datadir.read_readers(data),
    )


def _shared(limits: Limits, nodes: int) -> Limits:
    """The limits of one of many nodes: their caches share the machine's memory, unless an operator
    has set the size.
    """
    usual = Limits()
    shares = {
        name: max(getattr(limits, name) // nodes, CACHE_BYTES_MIN)
        for name in ("sqlite_cache_bytes_max", "hot_bytes_max")
        if getattr(limits, name) == getattr(usual, name)
    }
    return dataclasses.replace(limits, **shares)
