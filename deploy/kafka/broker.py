"""Apache Kafka brokers on this machine: formatted, started, awaited, killed, stopped.

A broker is one process, broker and KRaft controller at once, on a JDK 17 or later. Clients come to
a loopback port by SASL (SCRAM-SHA-256, SCRAM-SHA-512, PLAIN) and have only the rights that
``StandardAuthorizer`` knows of; the principal ``ADMIN`` may do everything. Brokers of a cluster
speak to each other over the same port.

It is small: a heap of 256 MiB, one garbage collector thread, compiled quickly rather than well. For
speed, or for data that matters, take another set-up.
"""

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

JARS = Path(__file__).parent / "jars"
HOST = "127.0.0.1"
ADMIN = "board-admin"
START_S_MAX = 60.0
STOP_S_MAX = 20.0
ANSWER_S_MAX = 2.0
POLL_S = 0.02
CLUSTER_ID_BYTES = 16
API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)
"""A request that is answered before anybody has logged in, and only by a broker that serves."""
JAVA = [
    "java", "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k",
    "-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
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


class Broker:
    """One broker, with a folder of its own."""

    def __init__(
        self, folder: Path, ensemble: Ensemble, place: Place, settings: Mapping[str, str]
    ) -> None:
        """``settings`` are broker settings that go over those of this module."""
        self.folder = folder
        self.ensemble = ensemble
        self.place = place
        self.settings = dict(settings)
        self.log = folder / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None

    # Its life

    def start(self) -> None:
        """Format the folder if it is new, and start; ``await_up`` says when it serves."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.folder / "server.properties"
        config.write_text(properties(self))
        config.chmod(0o600)
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(config)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                _java("kafka.Kafka", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for who runs this, who then stops the broker.
                start_new_session=True,
            )

    def _format(self, config: Path) -> None:
        scram = [
            f"{mechanism}=[name={ADMIN},password={self.ensemble.secret}]"
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        command = _java(
            "kafka.tools.StorageTool", "format", "--cluster-id", self.ensemble.cluster,
            "--config", str(config), *(f"--add-scram={one}" for one in scram),
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=START_S_MAX, check=False)
        if done.returncode != 0:
            raise BrokerError(f"format fails: {(done.stderr or done.stdout).decode().strip()}")

    def await_up(self, wait_s_max: float = START_S_MAX) -> None:
        """Wait until it serves; raises ``BrokerError`` if it ends or stays silent."""
        deadline = time.monotonic() + wait_s_max
        while not self.answers():
            if self.process is None or self.process.poll() is not None:
                raise BrokerError(f"the broker has ended; its log:\n{self.log.read_text()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"no answer in {wait_s_max:g} s; log:\n{self.log.read_text()}")
            time.sleep(POLL_S)

    def answers(self) -> bool:
        """Does it serve?"""
        with contextlib.suppress(OSError):
            address = (HOST, self.place.port)
            with socket.create_connection(address, timeout=ANSWER_S_MAX) as asking:
                if self.ensemble.certificate is not None:
                    return True
                asking.sendall(API_VERSIONS)
                return len(asking.recv(16)) > 0
        return False

    @property
    def pid(self) -> int:
        """The process id of a broker that was started."""
        assert self.process is not None
        return self.process.pid

    def send(self, number: int) -> None:
        """Send a signal to its process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """`kill -9`, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it cleanly; a broker that does not end in time is killed."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def properties(broker: Broker) -> str:
    """The text of a broker's `server.properties`."""
    ensemble, place = broker.ensemble, broker.place
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
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        # It is small.
        "log.dirs": str(broker.folder / "data"),
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
        **broker.settings,
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


def _java(main: str, *arguments: str) -> list[str]:
    if shutil.which("java") is None or not any(JARS.glob("kafka_2.13-*.jar")):
        raise BrokerError("there is no broker to run: `.ci/setup kafka` gets one")
    return [*JAVA, "-cp", f"{JARS}/*", main, *arguments]


def planned(count: int = 1, port: int = 0, certificate: Path | None = None) -> Ensemble:
    """A new cluster of so many brokers, on free ports; the first for clients is ``port`` if that is
    not 0.
    """
    ports = free_ports(2 * count)
    if port:
        ports[0] = port
    places = tuple(
        Place(node, ports[2 * node - 2], ports[2 * node - 1]) for node in range(1, count + 1)
    )
    cluster = secrets.token_urlsafe(CLUSTER_ID_BYTES)
    # A command line would take a leading "-" for an option.
    return Ensemble("k" + cluster[1:], secrets.token_hex(16), places, certificate)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


@contextlib.contextmanager
def brokers(folder: Path, ensemble: Ensemble, **settings: str) -> Iterator[list[Broker]]:
    """All brokers of a cluster, serving; stopped at the end. Settings have ``_`` for ``.``."""
    over = {key.replace("_", "."): value for key, value in settings.items()}
    found = [Broker(folder / f"kafka-{one.node}", ensemble, one, over) for one in ensemble.places]
    try:
        for one in found:
            one.start()
        for one in found:
            one.await_up()
        yield found
    finally:
        for one in found:
            if one.process is not None and one.process.poll() is None:
                one.process.terminate()
        for one in found:
            one.stop()
