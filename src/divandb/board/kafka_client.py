"""What all clients of Apache Kafka have in common: settings, and errors as boards raise them.

librdkafka (confluent-kafka) works in threads of its own, so nothing of it may exist before a fork.
Importing it starts none.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError

from divandb.board.base import (
    MIB,
    BoardError,
    NoTopic,
    Refused,
    TooLarge,
    Unidentified,
    Unreachable,
)
from divandb.config import KAFKA, BoardAccess

POLL_S = 0.25
"""A thread that waits for librdkafka notices so late that it is to end."""
CERTIFICATE = "ssl.certificate.location"
IDLE_S = 5.0
"""So often what librdkafka has to tell is heard while nothing is under way."""
BATCH_OVERHEAD_BYTES = 1024
"""What a broker's ``max.message.bytes`` must have beyond the largest message: it counts the heads
of batch and record, too.
"""


@dataclasses.dataclass(frozen=True)
class KafkaBounds:
    """What a board's clients use and how long they wait."""

    answer_s_max: float = 10.0
    """For the brokers to answer; a reader's own wait comes on top."""
    publish_bytes_max: int = 16 * MIB
    """Messages on their way to one partition; more are ``Full``."""
    ahead_bytes_max: int = 1 * MIB
    """Messages of one partition that librdkafka fetches before they are asked for; what one look at
    its queue brings is held besides.
    """
    fetch_wait_ms: int = 500
    """A broker answers a fetch after this time even if there is nothing new. So long a right that
    was taken away may still hold for one who waits.
    """
    verify_s: float = 5.0
    """A reader makes sure this often that the log is still the one that it began with."""


_SILENT = logging.getLogger("divandb.librdkafka")
_SILENT.disabled = True


def common(access: BoardAccess, bounds: KafkaBounds) -> dict[str, Any]:
    """librdkafka's settings for any client of this principal."""
    kafka = access.kafka
    found: dict[str, Any] = {
        "bootstrap.servers": access.url.removeprefix(KAFKA),
        "client.id": f"divandb.{access.principal}",
        "security.protocol": kafka.security,
        "socket.nagle.disable": True,
        "socket.keepalive.enable": True,
        "socket.connection.setup.timeout.ms": 5_000,
        "socket.timeout.ms": max(int(bounds.answer_s_max * 1000), 2 * bounds.fetch_wait_ms),
        "reconnect.backoff.max.ms": 1_000,
        "allow.auto.create.topics": False,
        # Faults come as errors, and are told by who meets them.
        "log_level": 0,
        "logger": _SILENT,
    }
    if kafka.has_sasl:
        found |= {
            "sasl.mechanism": kafka.mechanism,
            "sasl.username": access.principal,
            "sasl.password": access.secret,
        }
    if kafka.has_tls:
        found |= _tls(kafka.ca, kafka.certificate, kafka.certificate_key)
    return found


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> dict[str, Any]:
    found = {"ssl.ca.location": "probe" if ca is None else str(ca)}
    if certificate is not None:
        found[CERTIFICATE] = str(certificate)
        found["ssl.key.location"] = str(key or certificate)
    return found


def connection_words(problem: KafkaError, settings: Mapping[str, Any]) -> str:
    """Why there is no connection; a broker that asks for a certificate only says that it was shown
    a bad one.
    """
    words = str(problem.str())
    if CERTIFICATE not in settings and "alert" in words and "certificate" in words:
        return f"{words}, and no certificate is configured"
    return words


_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_UNIDENTIFIED = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_UNREACHABLE = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._DESTROY,
    KafkaError._WAIT_COORD,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_CONTROLLER,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.KAFKA_STORAGE_ERROR,
}


def error_of(problem: KafkaError, who: str, what: str) -> BoardError:
    """The board's error for one of librdkafka or a broker, whose own words it keeps.

    ``who`` is the principal; ``what`` it wanted to do, such as ``write divandb.….masters``.
    """
    code, words = problem.code(), f"{problem.str()} ({problem.name()})"
    if code in _REFUSED:
        return Refused(f"{who} may not {what}: {words}.")
    if code in _UNIDENTIFIED:
        return Unidentified(f"The broker does not take name or secret of {who}: {words}.")
    if code in _NO_TOPIC:
        return NoTopic(f"{who} cannot {what}: {words}.")
    if code in _TOO_LARGE:
        return TooLarge(f"{who} cannot {what}: {words}.")
    passes = code in _UNREACHABLE or problem.retriable()
    kind = Unreachable if passes else BoardError
    return kind(f"{who} could not {what}: {words}.")
