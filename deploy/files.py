"""The secret files of a cluster in containers: one for each node, and what the brokers need.

    python -m deploy.files compose                              -> deploy/compose/secrets
    python -m deploy.files kubernetes --board kafka://h1:9092   -> deploy/kubernetes/secrets

Run it again for more nodes, or with other options: `secret`, `admin` and the brokers' stay. All
nodes listen on the same port, each at an address of its own. How brokers of your own are spoken to,
and how topics are made there, is taken from the environment (`DIVANDB_BOARD_SECURITY` and so on).
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from divandb import datadir, hosts
from divandb.clock import SystemRng
from divandb.cluster import trust
from divandb.config import BoardAccess, Limits, Member, TopicSettings
from divandb.configfile import BOARD_ADMIN, KafkaFile, kafka_given, kafka_text, node_text
from divandb.datadir import PlannedNode
from divandb.layout import planned

HERE = Path(__file__).parent
PORT = 5984
DATA = Path("/var/lib/divandb")
TLS = Path("/etc/divandb/tls")
BROKERS = 3
BROKER_PORT = 9092
CONTROLLER_PORT = 9093
CONTAINER_UID = 1000
"""Of the user in the images of DivanDB and of Apache Kafka."""
NAMESPACE = "divandb"
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule"


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the nodes run."""

    file_of: Callable[[str], str]
    """A node's name → that of its file, without ``.toml``."""
    host_of: Callable[[str], str]
    """A node's name → the host name by which others reach it."""


def pod(node: str) -> str:
    """The pod of a node: StatefulSets number theirs behind a dash."""
    return re.sub(r"(\d+)$", r"-\1", node)


TARGETS = {
    "compose": Target(str, str),
    "kubernetes": Target(pod, lambda node: f"{pod(node)}.nodes.{NAMESPACE}.svc"),
}


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.files")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--masters", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=3, help="for each master")
    parser.add_argument("--board", help="kafka://HOST:PORT,HOST:PORT (compose: its own brokers)")
    parser.add_argument("--tls", action="store_true", help=f"with certificates in {TLS}")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    is_compose = given.target == "compose"
    if not given.board and not is_compose:
        parser.error("--board is missing: where are the Event Boards?")
    os.umask(0o077)
    out = given.out or HERE / given.target / "secrets"
    out.mkdir(parents=True, exist_ok=True)
    url, environment = (given.board, os.environ) if given.board else (board_url(), {})
    texts = node_files(
        TARGETS[given.target],
        planned(given.masters, given.replicas),
        boards_at(url, kept_secret(out), environment),
        kept_secret(out),
        kept_admin(out),
        with_tls=given.tls,
    )
    if is_compose:
        texts |= broker_files(kept_secret(out))
    for name, text in texts.items():
        datadir.write_private(out / name, text)
        if is_compose and os.geteuid() == 0:  # Compose mounts a file as it is
            os.chown(out / name, CONTAINER_UID, CONTAINER_UID)
    print(f"{len(texts)} files are in {out}; its `admin` is the admin of all nodes. Keep them.")
    return 0


def kept_secret(out: Path) -> bytes:
    """The cluster's secret: all credentials come from it."""
    return datadir.make_secret(out, SystemRng())


def kept_admin(out: Path) -> str:
    """`USER:PASSWORD`."""
    return datadir.make_admin(out, SystemRng())


def boards_at(
    url: str, secret: bytes, environment: Mapping[str, str]
) -> tuple[BoardAccess, TopicSettings]:
    """The admin of boards on Kafka, and how topics are made, as the environment says. An admin with
    no secret there has one of the cluster's.
    """
    admin, settings = kafka_given(url, environment)
    if admin.kafka.has_sasl and not admin.secret:
        derived = trust.board_secret(secret, BOARD_ADMIN)
        admin = dataclasses.replace(admin, principal=BOARD_ADMIN, secret=derived)
    return admin, settings


def node_files(
    target: Target,
    nodes: list[PlannedNode],
    boards: tuple[BoardAccess, TopicSettings],
    secret: bytes,
    admin: str,
    *,
    with_tls: bool,
) -> Mapping[str, str]:
    """File name → text: of each node, and `board.toml` for `divandb board init`."""
    tls = hosts.tls_in(TLS) if with_tls else hosts.PLAIN
    admin_access, settings = boards
    known = [
        Member(one.name, one.role, one.slot, hosts.url_of(target.host_of(one.name), PORT, tls))
        for one in nodes
    ]
    return {"board.toml": kafka_text(board_file(known, admin_access, settings, secret))} | {
        f"{target.file_of(one.name)}.toml": node_text(
            hosts.node_file(
                secret, one, known, hosts.nobody(admin_access), host=hosts.ALL_ADDRESSES,
                node_port=PORT, port=None, data=DATA, admin=admin, limits=Limits(), tls=tls,
            )
        )
        for one in known
    }  # fmt: skip


def board_file(
    known: list[Member], admin: BoardAccess, settings: TopicSettings, secret: bytes
) -> KafkaFile:
    """What the topics, principals and rights are made from."""
    return KafkaFile(
        admin,
        trust.keys_of(secret, "", "", "", is_master=False).cluster,
        tuple(known),
        trust.board_secrets(secret, known),
        settings,
    )


# Brokers for Compose


def broker_names() -> list[str]:
    """Their host names."""
    return [f"kafka{number}" for number in range(1, BROKERS + 1)]


def board_url() -> str:
    """Where nodes find them."""
    return "kafka://" + ",".join(f"{name}:{BROKER_PORT}" for name in broker_names())


def broker_files(secret: bytes) -> dict[str, str]:
    """File name → text: `server.properties` of each broker, and the id of their cluster."""
    admin = trust.board_secret(secret, BOARD_ADMIN)
    return {"kafka-id": kafka_id(secret)} | {
        f"{name}.properties": "".join(
            f"{key}={value}\n" for key, value in broker_settings(number, name, admin).items()
        )
        for number, name in enumerate(broker_names(), 1)
    }


def kafka_id(secret: bytes) -> str:
    """Sixteen bytes as Kafka writes them, 22 characters; the same at every run."""
    return "k" + trust.derived(secret, "kafka").hex()[:21]


def broker_settings(number: int, name: str, admin_secret: str) -> dict[str, str]:
    """Broker and controller in one process; whoever has no right to something is refused it."""
    login = (
        f'{PLAIN_LOGIN} required username="{BOARD_ADMIN}" password="{admin_secret}" '
        f'user_{BOARD_ADMIN}="{admin_secret}";'
    )
    voters = [f"{place}@{one}:{CONTROLLER_PORT}" for place, one in enumerate(broker_names(), 1)]
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "controller.quorum.voters": ",".join(voters),
        "listeners": f"CLIENTS://:{BROKER_PORT},CONTROLLER://:{CONTROLLER_PORT}",
        "advertised.listeners": f"CLIENTS://{name}:{BROKER_PORT}",
        "listener.security.protocol.map": "CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "inter.broker.listener.name": "CLIENTS",
        "controller.listener.names": "CONTROLLER",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-256",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-256",
        "listener.name.clients.scram-sha-256.sasl.jaas.config": (
            f'{SCRAM_LOGIN} required username="{BOARD_ADMIN}" password="{admin_secret}";'
        ),
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": login,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{BOARD_ADMIN}",
        "allow.everyone.if.no.acl.found": "false",
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(BROKERS),
        "min.insync.replicas": "2",
        "offsets.topic.replication.factor": str(BROKERS),
        "transaction.state.log.replication.factor": str(BROKERS),
        "log.dirs": "/var/lib/kafka/data",
    }


if __name__ == "__main__":
    sys.exit(main())
