"""What is wrong with a topic on Kafka, by its settings alone."""

import pytest

from divandb.config import TopicSettings
from divandb.provision import flaws

WANTED = TopicSettings(
    replication_factor=3,
    min_insync_replicas=2,
    retention_ms=1000,
    retention_bytes=5000,
    message_bytes_max=100_000,
)
GOOD = {
    "cleanup.policy": "delete",
    "retention.ms": "1000",
    "retention.bytes": "-1",
    "max.message.bytes": "101024",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
}


def test_a_topic_as_it_should_be_has_no_flaws() -> None:
    assert flaws(GOOD, 3, WANTED) == []
    assert flaws({**GOOD, "retention.ms": "-1", "min.insync.replicas": "3"}, 3, WANTED) == []


@pytest.mark.parametrize(
    ("name", "value", "copies", "words"),
    [
        ("max.message.bytes", "101023", 3, "takes messages of 99999 bytes, not 100000"),
        ("cleanup.policy", "compact,delete", 3, "is compacted"),
        ("unclean.leader.election.enable", "true", 3, "lets a broker lead"),
        ("retention.ms", "999", 3, "has retention.ms 999, less than 1000"),
        ("retention.bytes", "10", 3, "has retention.bytes 10, less than 5000"),
        ("min.insync.replicas", "1", 3, "takes a message with 1 copies, not 2"),
        ("min.insync.replicas", "4", 3, "wants 4 copies in sync and has 3"),
        ("cleanup.policy", "delete", 2, "has 2 copies, not 3"),
    ],
)
def test_each_flaw_is_said(name: str, value: str, copies: int, words: str) -> None:
    (found,) = flaws({**GOOD, name: value}, copies, WANTED)
    assert found.startswith(words)
