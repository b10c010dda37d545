"""The bench's commands with plots: what they print and draw is what was seen."""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import (
    beside,
    client,
    comfort,
    compare,
    counters,
    documents,
    growth,
    load,
    operations,
    paced,
    peers,
    plot,
    readers,
    replication,
    shapes,
    stats,
    ycsb,
)
from bench.servers import BenchError, Target

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str, kind: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f"{SVG}{kind}")


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in drawn(svg, "text")]


# Plots


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    line = plot.Line("", [(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 0), (5, math.nan), (6, 1)])
    svg = plot.over_time("t", [plot.Panel("p", [line])])
    assert [len((one.get("points") or "").split()) for one in drawn(svg, "polyline")] == [2, 2]
    assert len(drawn(svg, "circle")) == 1


def test_greater_values_stand_higher_and_later_ones_further_right() -> None:
    svg = plot.over_time("t", [plot.Panel("p", [plot.Line("", [(0, 1), (10, 3)])])])
    first, last = (drawn(svg, "polyline")[0].get("points") or "").split()
    (x1, y1), (x2, y2) = ([float(n) for n in one.split(",")] for one in (first, last))
    assert x1 == plot.MARGIN_LEFT and x2 == plot.WIDTH - plot.MARGIN_RIGHT
    assert y1 > y2


def test_names_are_escaped_and_shown() -> None:
    svg = plot.over_time("a < b", [plot.Panel("p & q", [], (2.0, "aim"))], [plot.Span("s", 0, 1)])
    assert {"a < b", "p & q", "aim", "s"} <= set(texts(svg))


def test_bars_are_as_long_as_their_values_and_missing_ones_are_told() -> None:
    group = plot.Group("reads", [plot.Bar("x", 50, 40, 60), plot.Bar("y", 25), plot.Bar("z", None)])
    svg = plot.bars("t", [group])
    widths = [float(one.get("width") or 0) for one in drawn(svg, "rect")[1:]]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert len(widths) == 2 and "-" in texts(svg) and "50.0" in texts(svg)


@given(st.floats(1e-6, 1e12))
def test_scales_end_at_a_round_number_that_is_not_below(greatest: float) -> None:
    end = plot.scale_end(greatest)
    assert greatest * 0.99999 <= end <= greatest * 2.6


def test_an_empty_scale_ends_at_one() -> None:
    assert plot.scale_end(0.0) == plot.scale_end(math.nan) == 1.0


# Latencies


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(1, 100))
def test_percentiles_of_counts_are_those_of_the_values(values: list[int], percent: float) -> None:
    counts = {value: values.count(value) for value in values}
    expected = stats.percentile([float(value) for value in values], percent)
    assert stats.percentile_of_counts(counts, percent) == expected


def test_a_histogram_is_read_or_its_absence_is_told() -> None:
    assert stats.parse_histogram('x\nhistogram {"191":5,"200":1}\n') == {191: 5, 200: 1}
    with pytest.raises(ValueError, match="refused"):
        stats.parse_histogram("Connection refused")


# Comfort


def a_slice(counts: dict[int, int], seconds: float = 1.0) -> load.Histogram:
    requests = sum(counts.values())
    p50, p99 = (stats.percentile_of_counts(counts, percent) for percent in (50, 99))
    return load.Histogram(stats.Load(requests, seconds, p50, p99, {}), counts)


def a_reading(p99_ms: float) -> readers.Reading:
    return readers.Reading(100, 100.0, 1.0, p99_ms, {}, [(1.0, p99_ms)])


def test_slices_are_joined_by_their_requests_not_by_their_percentiles() -> None:
    seen = readers.reading([(1.0, a_slice({100: 990})), (2.0, a_slice({100: 1, 9000: 9}))])
    assert seen.requests == 1000 and seen.requests_per_s == 500
    assert seen.p99_ms == 0.1
    assert seen.slices == [(1.0, 0.1), (2.0, 9.0)]


def test_a_sample_says_how_far_behind_the_replica_is() -> None:
    budget = {"share": 0.2, "use": {"replication": 0.1}, "wait_ms": 2, "usual_ms": None}
    seen = {
        "vector": {"a": 5, "b": 7},
        "lag_ms": None,
        "budget": {**budget, "reason": "clients fare as usual", "hurts": False},
    }
    assert comfort.sample(1.0, seen, 20).behind == 8
    assert comfort.sample(1.0, seen, 10).behind == 0


def test_comfort_is_held_against_its_aims() -> None:
    rounds = [
        comfort.Round(a_reading(10.0), a_reading(11.0), 500.0, 9_500.0, 10_000.0),
        comfort.Round(a_reading(10.0), a_reading(13.0), 500.0, None, 10_000.0),
    ]
    samples = [
        comfort.Sample(0.5, 0.2, 0.1, 1.0, None, "nobody asks", False, 10.0, 100),
        comfort.Sample(1.0, 1.0, 0.9, 1.0, 1.0, "nobody asks", False, None, 50),
    ]
    outcome = comfort.Outcome({}, comfort.QUICK, a_reading(20.0), rounds, samples, [])
    report = outcome.markdown()
    assert "1.20 (1.10-1.30) times" in report and "95% of free speed" in report
    assert {"backlog, documents", "1.2 × alone"} <= set(texts(outcome.svg()))


def test_comfort_says_when_nothing_was_left_to_catch_up() -> None:
    rounds = [comfort.Round(a_reading(1.0), a_reading(1.0), 500.0, None, 10_000.0)]
    outcome = comfort.Outcome({}, comfort.QUICK, a_reading(2.0), rounds, [], [])
    assert "nothing was left" in outcome.markdown()


# Peers

NOBODY = Target("x", "127.0.0.1", 1, "", ())


def a_round(requests: int) -> stats.Round:
    return stats.Round(stats.Load(requests, 1.0, 100.0, 900.0, {}), 0.5, 0.25)


def test_the_first_keys_are_drawn_most_and_none_is_strange() -> None:
    seen = Counter(ycsb.ranks(random.Random(1), 100, 20_000))
    assert set(seen) <= set(range(100))
    assert seen[0] / seen[9] == pytest.approx(10**ycsb.ZIPF, rel=0.3)


def spoken(keys: Sequence[str]) -> ycsb.Speech:
    return ycsb.post_speech(
        NOBODY,
        read=ycsb.Post("/q", '["é","', '"]'),
        write=ycsb.Post("/w", '["', '"]'),
        insert=ycsb.Post("/i", '["', '"]'),
        scan=ycsb.Post("/s", '["', "]", between='",%3d'),
        patterns=("seen", "done"),
        keys=keys,
        new_key=(40, "AAA="),
    )


def test_a_post_has_the_length_of_its_body() -> None:
    key = "a" * 32
    speech = spoken([key])
    before, between, after = speech.scan
    scans = [before + key + between % rows + after for rows in (1, 10, ycsb.SCAN_ROWS_MAX)]
    for text, wanted in [
        (key.join(speech.read), ["é", key]),
        (key.join(speech.insert), [key]),
        *zip(scans, ([key, 1], [key, 10], [key, 100]), strict=True),
    ]:
        head, _, body = text.partition("\r\n\r\n")
        assert f"Content-Length: {len(body.encode())}" in head
        assert json.loads(body) == wanted
        assert "Authorization" not in head


def test_a_put_has_the_length_of_its_body() -> None:
    parts = documents.body_around_number(random.Random(1), 200)
    target = Target("one", "127.0.0.1", 5984, "Basic x", ())
    script = load.put_script(target, "db", parts, seed=7)
    assert load.lua("PUT /db/") in script and "math.randomseed(7)" in script
    before, after = (part.decode() for part in parts)
    middle = json.loads(script.split("count)\n    .. ")[1].split(" .. (")[0])
    head, empty, begun = middle.partition("\r\n\r\n")
    assert head.startswith(" HTTP/1.1\r\nHost: 127.0.0.1:5984\r\nAuthorization: Basic x\r\n")
    assert (empty, begun) == ("\r\n\r\n", before)
    body = f"{before}{documents.NUMBER_FIRST}{after}"
    assert f"Content-Length: {len(body)}" in head
    assert json.loads(body)["number"] == documents.NUMBER_FIRST


def test_shares_of_requests_are_whole() -> None:
    for name, work in ycsb.WORKS.items():
        rest = 1 - (work.read + work.insert + work.scan + work.modify)
        assert (rest > 0.01) == (name in "AB"), name
    assert ycsb.WORKS["C"].reads_of_all == 1
    assert ycsb.WORKS["F"].reads_of_all == pytest.approx(2 / 3)


@pytest.mark.parametrize("work", ycsb.WORKS)
def test_a_script_has_what_its_work_needs_of_answers(work: str) -> None:
    files = {"keys": "/k", "draws": "/d", "revs": "/r"}
    posted = ycsb.script_of(spoken(["a"]), ycsb.WORKS[work], 1, files)
    revised = ycsb.script_of(
        ycsb.get_speech(NOBODY, "db", ["a"], b"{}"), ycsb.WORKS[work], 1, files
    )
    assert [posted.count("function response"), revised.count("function response")] == {
        "A": [0, 1], "B": [0, 1], "C": [0, 0], "D": [1, 1], "E": [0, 0], "F": [1, 1],
    }[work]  # fmt: skip
    assert "latest, revised = true, false" in posted or work != "D"


def test_redis_connections_are_shared_as_requests_are() -> None:
    assert ycsb.redis_parts(1.0, 16) == [("GET", 16)]
    assert ycsb.redis_parts(0.5, 16) == [("GET", 8), ("SET", 8)]
    assert ycsb.redis_parts(0.95, 16) == [("GET", 15), ("SET", 1)]


REDIS = """"test","rps","avg_latency_ms","p50_latency_ms","p99_latency_ms"
"GET","50000.00","0.1","0.120","0.9"
"""


def test_redis_benchmark_is_read_or_its_failure_is_shown() -> None:
    seen = ycsb.parse_redis(REDIS, 100_000)
    assert (seen.requests, seen.seconds) == (100_000, 2.0)
    assert (seen.p50_us, seen.p99_us) == (120.0, 900.0)
    with pytest.raises(BenchError, match="refused"):
        ycsb.parse_redis("Could not connect: Connection refused", 1)


def test_loads_side_by_side_are_added() -> None:
    both = ycsb.together(
        [stats.Load(300, 1.0, 100.0, 500.0, {}), stats.Load(100, 0.5, 300.0, 900.0, {"x": 1})]
    )
    assert both.requests / both.seconds == 500
    assert (both.p50_us, both.p99_us, both.errors) == (150.0, 900.0, {"x": 1})


def test_commands_for_redis_have_their_lengths() -> None:
    assert peers.resp(b"SET", b"k", b"") == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n"


def test_servers_take_turns_and_are_drawn_side_by_side() -> None:
    asked: list[str] = []

    def peer(name: str, requests: int, works: str) -> compare.Peer:
        def run(work: str, turn: int) -> stats.Round:
            asked.append(f"{work}{turn}{name}")
            return a_round(requests)

        return compare.Peer(NOBODY, "1", run, frozenset(works))

    plan = compare.Plan(10, 1_000, 2, ycsb.Size(16, 1), ("C", "A"))
    found = {compare.NGINX: peer("n", 200, "C"), compare.DIVANDB: peer("d", 100, "CA")}
    results = compare.take_turns(found, plan)
    assert asked == ["C1n", "C2d", "C3n", "C4d", "A5d", "A6d"]
    outcome = compare.Outcome({}, plan, dict.fromkeys(found, "1"), results)
    assert "50%" in outcome.markdown()
    assert texts(outcome.svg()).count("divandb") == 6


# Beside other work


def test_what_readers_felt_is_shown_for_each_work() -> None:
    rounds = [beside.Round(a_reading(10.0), a_reading(12.0), 30.0)]
    samples = [beside.Sample(0.5, 0.2, 0.1, 1.0), beside.Sample(1.0, 0.3, 0.1, 2.0)]
    spans = [plot.Span("view", 0.5, 30.5)]
    found = [beside.Found("view", a_reading(20.0), 25.0, rounds, samples, spans)]
    said = beside.Outcome({}, beside.QUICK, found).markdown()
    assert "p99 beside view: 1.20 times" in said
    assert "30.0 s beside readers, 25.0 s without" in said
    assert "used" in texts(found[0].svg())


def test_work_that_fails_is_told_to_whoever_waits() -> None:
    def fail() -> None:
        raise BenchError("no replica")

    with pytest.raises(BenchError, match="no replica"):
        beside.Working(fail).ended()
    assert beside.Working(lambda: None).ended() > 0


# Clusters of several shapes


def test_a_shape_is_masters_and_replicas() -> None:
    assert shapes.sizes("3x3") == (3, 3)
    assert shapes.sizes("1x0") == (1, 0)
    for wrong in ("3", "x3", "0x3", "3x", "axb"):
        with pytest.raises(BenchError, match="no shape"):
            shapes.sizes(wrong)


def test_cpu_of_a_write_is_shown_by_role_and_node() -> None:
    outcome = paced.Outcome(1_000, 2.0, 3.0, 9.0, 0.1, 0)
    cpu_s = {"board": 0.1, "master": 0.3, "replica": 0.6, "supervisor": 0.0}
    writing = replication.Writing(None, outcome, 0.01, cpu_s)
    found = [shapes.Shape("1x1", 2, 1.5, writing, 60.0, 90.0)]
    assert found[0].cpu_us == pytest.approx(1_000)
    row = shapes.table(found).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")][8:13] == ["1,000", "500", "100", "300", "600"]
    assert "1x1" in texts(shapes.svg(found))


# The Python client


def test_what_a_call_cost_the_client_is_shown() -> None:
    rounds = [client.Round([0.001] * 99 + [0.009], 2.0, 0.05)]
    results = [client.Result(client.GETS, client.SYNC, 1, 1, rounds)]
    outcome = client.Outcome({}, client.QUICK, results)
    row = [cell.strip() for cell in outcome.markdown().splitlines()[-1].split("|")]
    assert row[4:10] == ["50.0", "50.0", "1.00", "1.00", "500", "500"]
    assert "Client, 1" in texts(outcome.svg())


# Counters


def test_a_case_fails_from_fifteen_per_cent_more_and_when_it_is_not_stored() -> None:
    stored = {"same": 1000, "less": 1000, "more": 1000, "dear": 1000, "gone": 1000}
    counted = {"same": 1000, "less": 500, "more": 1150, "dear": 1151, "new": 10}
    seen = counters.changes(stored, counted)
    assert [one.name for one in seen if one.fails] == ["dear", "new"]
    assert {one.name for one in seen} == set(stored) | set(counted)
    rows = {line.split()[1]: line for line in counters.table(seen).splitlines()[2:]}
    assert "too much" in rows["dear"] and "1.15" in rows["dear"]
    assert "too much" not in rows["more"] + rows["gone"]


def test_the_total_is_read_from_what_callgrind_writes() -> None:
    assert counters.total("events: Ir\n\nfn=(1)\n1 5\ntotals: 4584990\n") == 4584990
    with pytest.raises(ValueError, match="no total"):
        counters.total("version: 1\n")


def test_what_is_stored_has_all_cases() -> None:
    stored = json.loads(counters.STORED.read_text())
    assert set(stored["instructions"]) == {case.name for case in operations.CASES}


def test_answers_are_read_to_their_end() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
    assert operations.is_whole(head + b"abc") and not operations.is_whole(head + b"ab")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert operations.is_whole(chunked + b"1\r\na\r\n0\r\n\r\n")
    assert not operations.is_whole(chunked + b"1\r\na\r\n") and not operations.is_whole(b"HTTP")
    assert operations.is_whole(b"HTTP/1.1 304 Not Modified\r\n\r\n")


def test_all_counted_requests_are_answered_without_sockets(tmp_path: Path) -> None:
    told: list[str] = []
    asyncio.run(operations.run(tmp_path, [], told.append, lambda: None))
    names = [case.name for case in operations.CASES]
    assert told == [f"{word} {name}" for name in names for word in ("ready", "done")]


# Growth


def a_step(docs: int, p50_us: float, rss_mib: float = 100.0) -> growth.Step:
    seen = stats.Round(stats.Load(100, 1.0, p50_us, 900.0, {}), 0.5, 0.25)
    alone, many = (stats.Result(str(docs), n, "divandb", 0, [seen]) for n in (1, 16))
    return growth.Step(docs, 5_000.0, 90.0, alone, many, rss_mib, 12.0)


def test_the_last_step_is_held_against_ten_thousand() -> None:
    steps = [a_step(1_000, 50.0), a_step(10_000, 100.0), a_step(1_000_000, 125.0, 180.0)]
    assert "1.25 times that at 10,000" in growth.verdict(steps)
    assert "180 MiB" in growth.verdict(steps)
    assert "1.25 times that at 100" in growth.verdict([a_step(100, 100.0), a_step(500, 125.0)])


def test_steps_are_shown_and_drawn() -> None:
    steps = [a_step(1_000, 50.0), a_step(10_000, 100.0)]
    outcome = growth.Outcome({}, growth.QUICK, steps, [(0.1, 100.0), (0.2, 120.0)])
    assert "10,000" in outcome.markdown()
    assert texts(outcome.svg()).count("10,000") == 5
    assert len(drawn(outcome.imports_svg(), "polyline")) == 1


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10))), st.integers(1, 20))
def test_points_are_smoothed_to_so_many_at_most(points: list[plot.Point], count: int) -> None:
    few = growth.smoothed(points, count)
    assert len(few) <= count and bool(few) == bool(points)
    if points:
        assert few[-1][0] == points[-1][0]
