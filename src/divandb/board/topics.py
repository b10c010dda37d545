"""What the board keeps besides logs: topics and principals, in small checksummed files.

    principals.json                     names and digests of secrets
    topics/<topic>/topic.json           identity, number of partitions, rights, and of a topic that
                                        is not durable since which start of the machine it is there
    topics/<topic>/<partition>/*.log    see ``divandb.board.log``

A file is one line of JSON and its CRC-32. A topic's identity is drawn when its file is made, and
again when one of its logs is found to be missing: before the missing log is made anew, so that no
reader ever takes a new log for the old one. The logs of a topic that is not durable go when the
machine was started anew, since nobody knows what of them was on the disk.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

from divandb.board.access import Credential, access_from, access_json
from divandb.board.base import TOPIC_NAME, Access
from divandb.board.disk import Disk
from divandb.board.log import LogSettings, PartitionLog, bases, segment_name
from divandb.clock import Clock, Rng
from divandb.telemetry import Log

FORMAT = 1
IDENTITY_BYTES = 16
TOPICS = "topics"
PRINCIPALS_FILE = "principals.json"
FILE_BYTES_MAX = 16 * 2**20


class UnknownFormat(Exception):
    """The board's files were written by a later version; the text is for the operator."""


@dataclasses.dataclass
class Topic:
    """One topic with its open logs."""

    name: str
    identity: str
    access: Access
    logs: list[PartitionLog]
    durable: bool = True


class Shelf:
    """The board's folder. Not thread-safe: one caller at a time."""

    def __init__(self, disk: Disk, settings: LogSettings, clock: Clock, rng: Rng, log: Log) -> None:
        self._disk = disk
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._log = log

    def topics(self) -> dict[str, Topic]:
        """Open all that is there. Raises ``UnknownFormat``."""
        self._disk.make_folder(TOPICS)
        found = (self._open(name) for name in self._disk.names(TOPICS))
        return {topic.name: topic for topic in found if topic is not None}

    def _open(self, name: str) -> Topic | None:
        if not TOPIC_NAME.fullmatch(name):
            return None
        known = self._read(_topic_file(name))
        if known is None:
            return None
        count = int(known["partitions"])
        durable = "boot" not in known
        if not (durable or known["boot"] == self._disk.boot != ""):
            self._remove_logs(name, count)
        topic = Topic(name, str(known["identity"]), access_from(known["access"]), [], durable)
        if not all(bases(self._disk, _folder(name, number)) for number in range(count)):
            lost, topic.identity = topic.identity, self._draw()
            self._log.event("log lost", topic=name, identity_before=lost, identity=topic.identity)
            self._write_topic(topic, count, topic.access)
        topic.logs.extend(self._logs(topic, count))
        return topic

    def _remove_logs(self, name: str, count: int) -> None:
        for folder in (_folder(name, number) for number in range(count)):
            for base in bases(self._disk, folder):
                self._disk.remove(segment_name(folder, base))

    def create(self, name: str, partitions: int, access: Access, durable: bool = True) -> Topic:
        """Make a topic. Logs that are there already, left over from a lost file, are taken in."""
        topic = Topic(name, self._draw(), access, [], durable)
        self.change(topic, partitions, access)
        return topic

    def change(self, topic: Topic, partitions: int, access: Access) -> None:
        """Give a topic these rights and, if it has fewer, so many partitions."""
        added = self._logs(topic, partitions)
        try:
            # After the logs, so that a crash before it leaves no topic rather than half of one.
            self._write_topic(topic, partitions, access)
        except BaseException:
            _close(added)
            raise
        topic.logs.extend(added)
        topic.access = access

    def _logs(self, topic: Topic, partitions: int) -> list[PartitionLog]:
        """The logs of the topic's further partitions, up to so many."""
        logs: list[PartitionLog] = []
        try:
            for number in range(len(topic.logs), partitions):
                folder = _folder(topic.name, number)
                self._disk.make_folder(folder)
                logs.append(
                    PartitionLog(
                        self._disk, folder, self._settings, self._log, self._clock.wall_ms(),
                        is_durable=topic.durable,
                    )
                )  # fmt: skip
        except BaseException:
            _close(logs)
            raise
        return logs

    def _draw(self) -> str:
        return self._rng.token(IDENTITY_BYTES).hex()

    def _write_topic(self, topic: Topic, partitions: int, access: Access) -> None:
        value: dict[str, Any] = {
            "identity": topic.identity,
            "partitions": partitions,
            "access": access_json(access),
        }
        if not topic.durable:
            value["boot"] = self._disk.boot
        self._write(_topic_file(topic.name), value)

    def principals(self) -> dict[str, Credential]:
        """The credentials of principals that were made known."""
        known = self._read(PRINCIPALS_FILE) or {}
        return {
            name: Credential(bytes.fromhex(salt), bytes.fromhex(digest))
            for name, (salt, digest) in known.get("principals", {}).items()
        }

    def keep_principals(self, known: Mapping[str, Credential]) -> None:
        """Put these in the place of those that were known."""
        shown = {name: (one.salt.hex(), one.digest.hex()) for name, one in known.items()}
        self._write(PRINCIPALS_FILE, {"principals": shown})

    def _write(self, name: str, value: dict[str, Any]) -> None:
        line = json.dumps({"format": FORMAT, **value}, sort_keys=True).encode()
        self._disk.replace(name, b"%s\n%08x\n" % (line, zlib.crc32(line)))

    def _read(self, name: str) -> dict[str, Any] | None:
        """A file's value; None if it is not there, or (reported) damaged."""
        try:
            line, _, crc = self._disk.read(name, 0, FILE_BYTES_MAX).partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        if crc.strip() != b"%08x" % zlib.crc32(line):
            self._log.event("file damaged", name=name)
            return None
        value: dict[str, Any] = json.loads(line)
        if value["format"] != FORMAT:
            raise UnknownFormat(f"{name} has format {value['format']}; this program knows {FORMAT}")
        return value


def _close(logs: list[PartitionLog]) -> None:
    for log in logs:
        log.close()


def _folder(topic: str, partition: int) -> str:
    return f"{TOPICS}/{topic}/{partition}"


def _topic_file(topic: str) -> str:
    return f"{TOPICS}/{topic}/topic.json"
