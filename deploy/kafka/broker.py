"""Apache Kafka brokers on this machine: formatted, started, awaited, killed, stopped.

They are what `divandb.localkafka` makes of a folder, one alone or several together. Brokers of a
cluster speak to each other over the clients' port. For speed, or for data that matters, take
another set-up.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from divandb import localkafka
from divandb.clock import SystemRng
from divandb.localkafka import (
    ADMIN,
    API_VERSIONS,
    HOST,
    BrokerError,
    Ensemble,
    Place,
    free_ports,
)

__all__ = [
    "ADMIN",
    "Broker",
    "BrokerError",
    "Ensemble",
    "Place",
    "brokers",
    "free_ports",
    "planned",
]

START_S_MAX = 60.0
STOP_S_MAX = 20.0
ANSWER_S_MAX = 2.0
POLL_S = 0.02


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
        jars = localkafka.jars_of(os.environ)
        command = localkafka.prepare(self.folder, self.ensemble, self.place, jars, self.settings)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for who runs this, who then stops the broker.
                start_new_session=True,
            )

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


def planned(count: int = 1, port: int = 0, certificate: Path | None = None) -> Ensemble:
    """A new cluster of so many brokers, on free ports; see ``localkafka.planned``."""
    return localkafka.planned(SystemRng(), count, port, certificate)


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
