"""Topics, principals and rights on Apache Kafka: made for a cluster's members, and checked.

``init`` makes what is missing, changes the rights to what they should be, and takes the secret of
who has lost them all; it never changes the settings of a topic that is there. ``check`` looks, with
an admin's eyes if there is an admin, and with those of each member and reader whose secret is
known, and says what is wrong.
"""

import asyncio
import dataclasses
from collections.abc import Mapping

from divandb.board.base import (
    Access,
    BoardError,
    Refused,
    Right,
    TopicInfo,
    Unidentified,
    Unreachable,
)
from divandb.board.kafka import KafkaBoard
from divandb.board.kafka_admin import bindings, operation_of, rights_of
from divandb.board.kafka_client import BATCH_OVERHEAD_BYTES, KafkaBounds
from divandb.cluster import topics
from divandb.cluster.topics import principal_of
from divandb.config import BoardAccess, TopicSettings
from divandb.configfile import KafkaFile
from divandb.store.positions import Position

Positions = Mapping[str, list[Position]]
"""Where each node has read to, as far as its file is here."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """How far a node is on a partition."""

    node: str
    topic: str
    partition: int
    next: int
    lag: int | None
    """Messages that it has not read; ``None``: its place is one of another log."""


@dataclasses.dataclass
class Report:
    """What was found."""

    topics: list[TopicInfo] = dataclasses.field(default_factory=list)
    rights: dict[str, dict[str, frozenset[Right]]] = dataclasses.field(default_factory=dict)
    """Principal → topic → what the brokers let it do."""
    readers: list[Reader] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    """Why nodes cannot work there, or who may do too much; a line each."""
    poor: list[str] = dataclasses.field(default_factory=list)
    """What works, and is not as it was asked for."""


async def init(file: KafkaFile) -> None:
    """Make topics, principals and rights. Raises ``BoardError``."""
    board = KafkaBoard(file.admin, topics=file.topics)
    try:
        if file.admin.kafka.has_scram:
            # While their rights still say who they are.
            for name in await _former(board, file):
                await board.admin.remove_scram(name)
        await topics.arrange(board, file.cluster, file.members, file.secrets, file.readers)
    finally:
        await board.close()


async def _former(board: KafkaBoard, file: KafkaFile) -> list[str]:
    """Who has rights on the boards and is no member or reader any more."""
    layout = topics.layout(file.cluster, file.members, file.readers)
    known = {name for _, access in layout.values() for name in access}
    found = [await board.admin.bindings(topic) for topic in layout]
    named = {one.principal.removeprefix("User:") for bindings in found for one in bindings}
    return sorted(named - known - {file.admin.principal})


async def check(file: KafkaFile, positions: Positions) -> Report:
    """Look at everything. Raises ``Unreachable`` if there is nothing to look at."""
    report = Report()
    wanted = topics.layout(file.cluster, file.members, file.readers)
    if file.admin.principal or not file.admin.kafka.has_principals:
        await _as_admin(file, report)
    if file.admin.kafka.has_principals:
        known = [file.access(one) for one in file.members if principal_of(one) in file.secrets]
        known += [file.reading(name) for name in file.readers]
        found = await asyncio.gather(*(_as_principal(file, one, report) for one in known))
        seen = {one.topic: one for infos in found for one in infos}
        report.topics = list({**seen, **{one.topic: one for one in report.topics}}.values())
    report.topics.sort(key=lambda one: list(wanted).index(one.topic))
    _compare(report, positions)
    return report


# As an admin


async def _as_admin(file: KafkaFile, report: Report) -> None:
    board = KafkaBoard(file.admin, topics=file.topics)
    try:
        brokers = await board.admin.brokers()
        wanted = topics.layout(file.cluster, file.members, file.readers)
        for topic, (partitions, access) in wanted.items():
            try:
                info = await board.describe(topic)
            except Unreachable:
                raise
            except BoardError as problem:
                report.wrong.append(f"{topic}: {problem.reason}")
                continue
            report.topics.append(info)
            if len(info.partitions) < partitions:
                report.wrong.append(
                    f"{topic}: has {len(info.partitions)} partitions, needs {partitions}"
                )
            copies = await board.admin.copies(topic)
            settings = await board.admin.topic_settings(topic)
            report.poor += [f"{topic}: {one}" for one in flaws(settings, copies, file.topics)]
            if brokers > 1 and copies == 1:
                report.poor.append(f"{topic}: has one copy, though there are {brokers} brokers")
            if file.admin.kafka.has_principals:
                await _check_rights(board, topic, access, report)
    finally:
        await board.close()


async def _check_rights(board: KafkaBoard, topic: str, access: Access, report: Report) -> None:
    try:
        there, wanted = await board.admin.bindings(topic), bindings(topic, access)
    except BoardError as problem:
        report.wrong.append(f"{topic}: {problem.reason}")
        return
    for found, words in ((wanted - there, "lacks the right"), (there - wanted, "has the right")):
        for one in sorted(found):
            name = one.principal.removeprefix("User:")
            report.wrong.append(f"{topic}: {name} {words} {operation_of(one)} on {one.name}")


def flaws(settings: Mapping[str, str], copies: int, wanted: TopicSettings) -> list[str]:
    """What is wrong with a topic's settings as its brokers have them."""
    found = []
    limit = int(settings["max.message.bytes"]) - BATCH_OVERHEAD_BYTES
    if limit < wanted.message_bytes_max:
        found.append(f"takes messages of {limit} bytes, not {wanted.message_bytes_max}")
    if "compact" in settings["cleanup.policy"]:
        found.append("is compacted: events would be lost")
    if settings.get("unclean.leader.election.enable") == "true":
        found.append("lets a broker lead that lacks acknowledged messages")
    if copies < wanted.replication_factor:
        found.append(f"has {copies} copies, not {wanted.replication_factor}")
    in_sync = int(settings["min.insync.replicas"])
    if in_sync > copies:
        found.append(f"wants {in_sync} copies in sync and has {copies}: it takes nothing")
    if in_sync < wanted.min_insync_replicas:
        found.append(f"takes a message with {in_sync} copies, not {wanted.min_insync_replicas}")
    kept = (("retention.ms", wanted.retention_ms), ("retention.bytes", wanted.retention_bytes))
    for name, least in kept:
        if 0 <= int(settings[name]) < least:
            found.append(f"has {name} {settings[name]}, less than {least}")
    return found


# As each principal


async def _as_principal(file: KafkaFile, access: BoardAccess, report: Report) -> list[TopicInfo]:
    """What a member or reader may do; the topics that it sees."""
    name = access.principal
    board = KafkaBoard(access, bounds=KafkaBounds(answer_s_max=10.0))
    layout = topics.layout(file.cluster, file.members, file.readers)
    found = []
    try:
        for topic, (_, rights) in layout.items():
            wanted = rights.get(name, frozenset())
            try:
                has = rights_of(await board.admin.operations(topic))
                if has:
                    found.append(await board.describe(topic))
            except Unidentified:
                raise
            except Refused:
                has = frozenset()
            report.rights.setdefault(name, {})[topic] = has
            if has != wanted:
                report.wrong.append(f"{name} may {_shown(has)} {topic}, not {_shown(wanted)}")
    except Unreachable:
        raise
    except BoardError as problem:
        report.wrong.append(f"{name}: {problem.reason}")
    finally:
        await board.close()
    return found


def _shown(rights: frozenset[Right]) -> str:
    return " and ".join(sorted(rights)) or "do nothing with"


# Where the nodes are


def _compare(report: Report, positions: Positions) -> None:
    known = {one.topic: one for one in report.topics}
    for node, places in positions.items():
        for place in places:
            info = known.get(place.topic)
            if info is None or place.partition >= len(info.partitions):
                continue
            end = info.partitions[place.partition].end
            lag = end - place.next if place.identity == info.identity else None
            report.readers.append(Reader(node, place.topic, place.partition, place.next, lag))
