"""An Apache Kafka broker of this machine's own, for `divandb up --board kafka-local`.

A broker is one process, broker and KRaft controller at once, on a JDK 17 or later. Clients come to
a loopback port by SASL (SCRAM-SHA-256, SCRAM-SHA-512, PLAIN) and have only the rights that
``StandardAuthorizer`` knows of; the principal ``ADMIN`` may do everything. It is small: a heap of
256 MiB, one garbage collector thread, compiled quickly rather than well.

What `divandb up` keeps of its own one:

    DATA/kafka/broker.json        the cluster's id, the admin's secret and the ports, mode 0600
    DATA/kafka/server.properties  written anew at each start, mode 0600
    DATA/kafka/lock               held by the broker for as long as it lives
    DATA/kafka/data               its logs
"""

import base64
import contextlib
import dataclasses
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from divandb import datadir
from divandb.clock import Clock, Rng

LOCAL = "kafka-local"
"""In the place of a board's URL: this broker."""
FOLDER = "kafka"
HOST = "127.0.0.1"
ADMIN = "board-admin"
JARS = "DIVANDB_KAFKA_JARS"
"""The variable that names the folder with Kafka's jars."""
JARS_HERE = Path(__file__).parents[2] / "deploy" / "kafka" / "jars"
"""Where `.ci/setup kafka` puts them."""
ARCHIVE = "classes.jsa"
"""Beside the jars, if it was made: their classes as Java has them in memory."""
FORMAT_S_MAX = 60.0
LOCK_S_MAX = 30.0
"""For a broker that a killed supervisor has left behind to end."""
LOCK_POLL_S = 0.05
CLUSTER_ID_BYTES = 16
SECRET_BYTES = 16
API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)
"""A request that is answered before anybody has logged in, and only by a broker that serves."""
JAVA = [
    "java", "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k",
    "-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
]  # fmt: skip
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


class BrokerError(Exception):
    """A broker cannot be run; the text says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one broker of a cluster is."""

    node: int
    port: int
    """For clients and the other brokers."""
    controller_port: int


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """What the brokers of a cluster have in common."""

    cluster: str
    """Its id, 22 characters of base64."""
    secret: str
    """Of the principal ``ADMIN``."""
    places: tuple[Place, ...]
    certificate: Path | None = None
    """PEM file with certificate chain and key: clients then come by TLS."""

    @property
    def url(self) -> str:
        """As `divandb up --board` takes it."""
        return "kafka://" + ",".join(f"{HOST}:{one.port}" for one in self.places)


# What a broker is started with


def properties(
    folder: Path, ensemble: Ensemble, place: Place, settings: Mapping[str, str] | None = None
) -> str:
    """The text of a broker's `server.properties`; ``settings`` go over those of this module."""
    copies = str(min(len(ensemble.places), 3))
    scheme = "SASL_PLAINTEXT" if ensemble.certificate is None else "SASL_SSL"
    plain = (
        f'{PLAIN} required username="{ADMIN}" password="{ensemble.secret}" '
        f'user_{ADMIN}="{ensemble.secret}";'
    )
    scram = f'{SCRAM} required username="{ADMIN}" password="{ensemble.secret}";'
    values = {
        "process.roles": "broker,controller",
        "node.id": str(place.node),
        "controller.quorum.voters": ",".join(
            f"{one.node}@{HOST}:{one.controller_port}" for one in ensemble.places
        ),
        "listeners": (f"CLIENTS://{HOST}:{place.port},CONTROLLER://{HOST}:{place.controller_port}"),
        "advertised.listeners": f"CLIENTS://{HOST}:{place.port}",
        "listener.security.protocol.map": f"CLIENTS:{scheme},CONTROLLER:SASL_PLAINTEXT",
        "inter.broker.listener.name": "CLIENTS",
        "controller.listener.names": "CONTROLLER",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-256",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
        "listener.name.clients.scram-sha-256.sasl.jaas.config": scram,
        "listener.name.clients.scram-sha-512.sasl.jaas.config": scram,
        "listener.name.clients.plain.sasl.jaas.config": plain,
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": plain,
        # Rule 3: the broker refuses.
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN}",
        "allow.everyone.if.no.acl.found": "false",
        "auto.create.topics.enable": "false",
        # After kill -9 it may come back when its last session is over.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        # It is small.
        "log.dirs": str(folder / "data"),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
        "num.recovery.threads.per.data.dir": "1",
        "log.cleaner.dedupe.buffer.size": str(2 * 2**20),
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "group.initial.rebalance.delay.ms": "0",
        "log.segment.delete.delay.ms": "1000",
        **({} if ensemble.certificate is None else _tls(ensemble.certificate)),
        **(settings or {}),
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _tls(certificate: Path) -> dict[str, str]:
    """Brokers trust each other by the same certificate."""
    return {
        "listener.name.clients.ssl.keystore.type": "PEM",
        "listener.name.clients.ssl.keystore.location": str(certificate),
        "listener.name.clients.ssl.truststore.type": "PEM",
        "listener.name.clients.ssl.truststore.location": str(certificate),
    }


def jars_of(environment: Mapping[str, str]) -> Path:
    """The folder with Kafka's jars; raises ``BrokerError`` if a broker cannot be run from it."""
    jars = Path(environment.get(JARS, JARS_HERE))
    if not any(jars.glob("kafka_2.13-*.jar")):
        raise BrokerError(
            f"there is no Kafka broker in {jars}: `.ci/setup kafka` in a copy of the repository "
            f"gets one; {JARS} names another folder with its jars"
        )
    if shutil.which("java") is None:
        raise BrokerError("there is no `java` to run Kafka with: install a JDK, 17 or later")
    return jars


def java(jars: Path, main: str, *arguments: str) -> list[str]:
    """The command for a class of Kafka's."""
    archive = jars / ARCHIVE
    shared = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
    return [*JAVA, *shared, "-cp", f"{jars}/*", main, *arguments]


def prepare(
    folder: Path,
    ensemble: Ensemble,
    place: Place,
    jars: Path,
    settings: Mapping[str, str] | None = None,
) -> list[str]:
    """Write what the broker reads, and format its folder if it is new; the command that runs it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = folder / "server.properties"
    datadir.write_private(config, properties(folder, ensemble, place, settings))
    if not (folder / "data" / "meta.properties").exists():  # Kafka writes it last
        _format(jars, config, ensemble)
    return java(jars, "kafka.Kafka", str(config))


def _format(jars: Path, config: Path, ensemble: Ensemble) -> None:
    scram = [
        f"--add-scram={mechanism}=[name={ADMIN},password={ensemble.secret}]"
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]
    command = java(
        jars, "kafka.tools.StorageTool", "format", "--cluster-id", ensemble.cluster,
        "--config", str(config), *scram,
    )  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=FORMAT_S_MAX, check=False
    )
    if done.returncode != 0:
        raise BrokerError(f"format fails: {(done.stderr or done.stdout).decode().strip()}")


def planned(rng: Rng, count: int = 1, port: int = 0, certificate: Path | None = None) -> Ensemble:
    """A new cluster of so many brokers, on free ports; the first for clients is ``port`` if that is
    not 0.
    """
    ports = free_ports(2 * count)
    if port:
        ports[0] = port
    places = tuple(
        Place(node, ports[2 * node - 2], ports[2 * node - 1]) for node in range(1, count + 1)
    )
    return Ensemble(_cluster_id(rng), rng.token(SECRET_BYTES).hex(), places, certificate)


def _cluster_id(rng: Rng) -> str:
    """A UUID as Kafka writes it; a leading "-" would be an option on its command line."""
    return "k" + base64.urlsafe_b64encode(rng.token(CLUSTER_ID_BYTES)).decode().rstrip("=")[1:]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


# The broker of a data folder


class _Kept(msgspec.Struct):
    """What stands in `broker.json`."""

    cluster: str
    secret: str
    port: int
    controller_port: int


def kept(data: Path, rng: Rng) -> Ensemble:
    """The cluster of the data folder, made at the first start. Its ports stay the same as long as
    nobody else has taken them. Raises ``DataDirError``.
    """
    ensemble = known(data) or planned(rng)
    (place,) = ensemble.places
    if not _is_free(place.port) or not _is_free(place.controller_port):
        moved = Place(place.node, *free_ports(2))
        ensemble = dataclasses.replace(ensemble, places=(moved,))
    _write(data, ensemble)
    return ensemble


def known(data: Path) -> Ensemble | None:
    """The cluster of the data folder, if it has one; raises ``DataDirError``."""
    path = data / FOLDER / "broker.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as problem:
        raise datadir.DataDirError(f"cannot read {path}: {problem}") from None
    place = Place(1, found.port, found.controller_port)
    return Ensemble(found.cluster, found.secret, (place,))


def _write(data: Path, ensemble: Ensemble) -> None:
    (place,) = ensemble.places
    found = _Kept(ensemble.cluster, ensemble.secret, place.port, place.controller_port)
    folder = data / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
    datadir.write_private(folder / "broker.json", f"{text}\n")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((HOST, port)):
        return True
    return False


def around(data: Path, url: str, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, with the admin's name and secret if ``url`` is that of the folder's own
    broker.
    """
    ensemble = known(data)
    if ensemble is None or ensemble.url != url:
        return environment
    access = {
        "ADMIN_PRINCIPAL": ADMIN,
        "ADMIN_SECRET": ensemble.secret,
        "SECURITY": "sasl_plaintext",
        "MECHANISM": "SCRAM-SHA-256",
    }
    return {**environment, **{f"DIVANDB_BOARD_{key}": value for key, value in access.items()}}


def run(data: Path, clock: Clock, environment: Mapping[str, str]) -> NoReturn:
    """Become the broker of the data folder: this process is Java's from here on.

    The lock is inherited. So a broker that a killed supervisor has left behind is waited for.
    Raises ``BrokerError`` or ``OSError``.
    """
    ensemble = known(data)
    if ensemble is None:
        raise BrokerError(f"{data / FOLDER} has no broker")
    folder, (place,) = data / FOLDER, ensemble.places
    _hold(folder / "lock", clock)
    command = prepare(folder, ensemble, place, jars_of(environment))
    os.execvp(command[0], command)


def _hold(path: Path, clock: Clock) -> None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    deadline = clock.monotonic() + LOCK_S_MAX
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.monotonic() > deadline:
                raise BrokerError(f"another broker still runs in {path.parent}") from None
            time.sleep(LOCK_POLL_S)
        else:
            return
