"""The cluster's benchmark: lags, rates and tables are made of what was seen."""

import json
import socket

import pytest

from bench import bare, lag, paced, replication, stats
from bench.servers import BenchError, Target

PLAN = paced.Plan("127.0.0.1", 5984, "Basic eDp5", "db", 2, 1.0, None, 200, "seed")


def an_outcome(requests: int, seconds: float) -> paced.Outcome:
    return paced.Outcome(requests, seconds, 1.0, 2.0, 0.1, 0)


def a_writing(asked: float | None, requests: int, lag_s: float) -> replication.Writing:
    cpu_s = dict.fromkeys(replication.ROLES, 0.25)
    return replication.Writing(asked, an_outcome(requests, 10.0), lag_s, cpu_s)


def cells(table: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_requests_are_puts_of_documents_of_the_length_asked_for() -> None:
    made = paced.requests(PLAN)
    first, second = next(made), next(made)
    head, _, body = first.partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /db/") and b"Content-Length: 200" in head
    assert len(body) == 200 and json.loads(body)["number"] == 10_000_000
    assert first.split()[1] != second.split()[1]


def test_a_lag_is_from_the_answer_to_the_sight_and_never_negative() -> None:
    mark = lag.Mark({"m1-r3": lag.SAME, "m2-r3": lag.OTHER, "m3-r3": lag.OTHER})
    mark.seen = {"m1-r3": 0.9, "m2-r3": 1.004}
    assert mark.lags_ms() == {}
    mark.answered = 1.0
    assert not mark.is_complete
    mark.seen["m3-r3"] = 1.01
    assert mark.is_complete
    lags_ms = mark.lags_ms()
    assert lags_ms[lag.SAME] == [0.0]
    assert lags_ms[lag.OTHER] == pytest.approx([4.0, 10.0])


def test_a_feed_finds_each_mark_once_wherever_its_line_was_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        node = lag.Member("m1", "master", "m1", Target("m1", "127.0.0.1", port, "Basic x", ()))
        feed = lag.Feed(node, "marks")
        served, _ = listener.accept()
        with served:
            ids = [f"{number:032x}".encode() for number in range(3)]
            lines = b"".join(b'{"seq":"1-x","id":"%b","changes":[]}\n' % one for one in ids)
            found = []
            for at in range(0, len(lines), 25):
                served.sendall(lines[at : at + 25])
                found += feed.ids()
            assert found == ids
        with pytest.raises(BenchError, match="closed"):
            feed.ids()
        feed.close()


def test_a_rate_is_sustained_when_nodes_kept_up_with_all_that_was_asked() -> None:
    assert a_writing(None, 1000, 0.9).is_sustained
    assert not a_writing(None, 1000, 1.1).is_sustained
    assert a_writing(100.0, 990, 0.1).is_sustained
    assert not a_writing(100.0, 900, 0.1).is_sustained


def test_the_next_rate_is_what_the_nodes_took_and_always_lower() -> None:
    assert replication.next_rate(a_writing(None, 1000, 10.0)) == pytest.approx(50)
    assert replication.next_rate(a_writing(100.0, 1000, 0.0)) == pytest.approx(90)


def test_writing_shows_microseconds_of_each_role() -> None:
    (row,) = cells(replication.writing_table([a_writing(None, 1000, 0.5)]))
    assert row["PUT, asked/s"] == "-"
    assert row["answered/s"] == "100"
    assert row["CPU µs/write, all"] == "1,000"
    assert row["master"] == "250"
    assert row["kept up"] == "yes"


def test_lag_has_a_row_for_each_kind_of_reader() -> None:
    lags = lag.Lags({kind: [1.0, 2.0, 30.0] for kind in lag.KINDS}, 0)
    late = replication.Lateness(0.5, a_writing(92.0, 920, 0.1), lags, 8.0)
    rows = cells(replication.lag_table([late]))
    assert [row["seen at"] for row in rows] == list(lag.KINDS)
    assert rows[0]["PUT/s"] == stats.number(100.0)
    assert (rows[0]["lag p50 ms"], rows[0]["lag p99 ms"]) == ("2.00", "30.0")


def test_bulk_counts_documents_until_all_nodes_have_them() -> None:
    cpu_s = dict.fromkeys(replication.ROLES, 0.5)
    (row,) = cells(replication.bulk_table([replication.Bulk(10_000, 1.0, 2.0, cpu_s)]))
    assert row["answered docs/s"] == "10,000"
    assert row["on all nodes docs/s"] == "5,000"
    assert row["CPU µs/doc, all"] == "200"


def test_what_is_seen_over_kafka_is_held_against_twice_the_bare_loop() -> None:
    lags = lag.Lags({lag.SAME: [1.0], lag.OTHER: [8.9, 9.1, 9.1, 40.0], lag.ITSELF: [0.0]}, 0)
    alone = bare.Outcome(100, 50.0, 2.0, 10.0, 400.0, 0.1)
    beside = bare.Outcome(100, 5.0, 2.1, 9.0, 400.0, 0.1)
    lateness = replication.Lateness(0.5, a_writing(45.0, 450, 0.1), lags, 5.0, beside, alone)
    outcome = replication.Outcome(1.0, 100.0, writings=[a_writing(None, 790, 0.5)], lags=[lateness])
    rows = cells(replication.kafka_table(outcome))
    found = [(row["found"], row["ms"], row["bound"], row["within"]) for row in rows]
    assert found == [
        ("9.10", "2.00", "at most 9.00", "no"),
        ("9.10", "2.10", "at most 9.20", "yes"),
        ("40.0", "10.0", "at most 40.0", "yes"),
        ("40.0", "9.00", "at most 38.0", "no"),
        ("79.0", "-", "at least 80.0", "no"),
    ]
    assert "on Kafka" in outcome.markdown()
    assert outcome.as_json()["lags"][0]["alone"]["p50_ms"] == 2.0
    outcome.embedded_per_s = 98.0
    assert cells(replication.kafka_table(outcome))[-1]["within"] == "yes"
    outcome.embedded_per_s = None
    assert "on Kafka" not in outcome.markdown()
