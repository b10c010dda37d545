"""The benchmark's arithmetic and its data: what it prints must be what happened."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import documents, proc, stats
from bench.load import Share, joined
from bench.servers import BenchError

WRK = """Running 1s test @ http://127.0.0.1:8080/
  1 threads and 16 connections
  Latency Distribution
     50%  191.00us
  79341 requests in 1.00s, 27.92MB read
Requests/sec:  79314.10
bench {"requests": 79341, "duration_us": 1000337, "p50_us": 191.0, "p99_us": 458.5, "errors": \
{"connect": 0, "read": 0, "write": 0, "status": 7, "timeout": 1}}
"""


def a_round(requests: int, *, seconds: float = 1.0, cpu_s: float | None = 0.5) -> stats.Round:
    return stats.Round(stats.Load(requests, seconds, 200.0, 900.0, {}), cpu_s, 0.25)


def a_result(server: str, *rounds: stats.Round, docs: int = 0) -> stats.Result:
    return stats.Result("get", 16, server, docs, rounds)


def test_wrk_output_is_read_with_its_errors() -> None:
    load = stats.parse_wrk(WRK)
    assert load.requests == 79341
    assert load.seconds == pytest.approx(1.000337)
    assert (load.p50_us, load.p99_us) == (191.0, 458.5)
    assert load.errors == {"status": 7, "timeout": 1}


def test_wrk_output_without_a_result_is_shown_in_the_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        stats.parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(1, 100))
def test_a_percentile_is_one_of_the_values_and_enough_lie_below(
    values: list[float], percent: float
) -> None:
    found = stats.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-6


def test_percentiles_are_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert stats.percentile(values, 50) == 50
    assert stats.percentile(values, 99) == 99
    assert stats.percentile([7.0], 99) == 7


def test_a_result_gives_the_median_round_and_the_extremes() -> None:
    result = a_result("divandb", a_round(1000), a_round(3000, seconds=2.0), a_round(1200))
    assert result.requests_per_s == stats.Spread(1200, 1000, 1500)
    cpu = result.cpu_us_per_request
    assert cpu is not None
    assert cpu.high == pytest.approx(500)
    assert result.generator_busy == stats.Spread(0.25, 0.125, 0.25)


def test_a_server_whose_processes_are_not_here_has_no_cpu() -> None:
    result = a_result("server", a_round(10, cpu_s=None))
    assert result.cpu_us_per_request is None
    assert result.server_busy is None
    assert result.as_json()["server_cpu_us_per_request"] is None


def test_a_round_without_requests_does_not_divide_by_zero() -> None:
    cpu = a_result("divandb", a_round(0)).cpu_us_per_request
    assert cpu == stats.Spread(500_000, 500_000, 500_000)


def test_results_are_json() -> None:
    shown = json.loads(json.dumps(a_result("divandb", a_round(1000)).as_json()))
    assert shown["requests_per_s"] == {"median": 1000, "low": 1000, "high": 1000}
    assert shown["rounds"][0]["load"]["requests"] == 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345.6, "12,346"),
        (99.96, "100"),
        (99.9, "99.9"),
        (12.34, "12.3"),
        (9.876, "9.88"),
        (0.5, "0.500"),
        (0.0004, "0.000"),
    ],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert stats.number(value) == text


def test_a_range_is_shown_only_where_there_is_one() -> None:
    assert stats.with_range(stats.Spread(10, 10, 10)) == "10.0"
    assert stats.with_range(stats.Spread(20, 10, 3000)) == "20.0 (10.0-3,000)"
    assert stats.with_range(None) == "-"


def test_a_table_is_markdown_with_numbers_on_the_right() -> None:
    assert stats.markdown_table(("case", "n"), [["get", 1], ["put", 16]]).splitlines() == [
        "| case |  n |",
        "| ---- | -: |",
        "| get  |  1 |",
        "| put  | 16 |",
    ]


def test_a_table_without_rows_has_its_head() -> None:
    assert stats.markdown_table(("a", "b"), []).splitlines()[0] == "| a | b |"


def test_the_server_is_held_against_the_ceiling_of_the_same_case() -> None:
    results = [a_result("nginx", a_round(4000)), a_result("divandb", a_round(1000), docs=30)]
    lines = stats.result_table(results, "nginx").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert dict(zip(cells[0], cells[3], strict=True)) == {
        "case": "get",
        "connections": "16",
        "server": "divandb",
        "requests/s": "1,000",
        "of nginx": "25%",
        "docs/s": "30,000",
        "p50 ms": "0.200",
        "p99 ms": "0.900",
        "server CPU µs/request": "500",
        "core busy: server": "50%",
        "core busy: load": "25%",
        "errors": "0",
    }
    assert cells[2][4] == "-"


def test_idle_is_a_share_of_a_core_and_mebibytes() -> None:
    table = stats.idle_table([stats.Idle("after start", 2, 10.0, 0.02, 46080)])
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    assert cells == ["after start", "2", "10.0", "0.20%", "45.0"]


def test_connections_add_their_rates() -> None:
    quick, slow = Share([0.1] * 10, 1.0, {}), Share([1.0] * 2, 2.0, {"status": 1})
    load = joined([quick, slow])
    assert load.requests == 12
    assert load.requests / load.seconds == pytest.approx(11)
    assert load.errors == {"status": 1}


def test_a_round_in_which_nothing_succeeded_stops_the_run() -> None:
    with pytest.raises(BenchError, match="status"):
        joined([Share([], 1.0, {"status": 3})])


def test_cpu_counts_new_processes_whole_and_pids_used_again_as_new() -> None:
    before = {(10, 1): 500, (11, 2): 300}
    after = {(10, 1): 650, (11, 9): 20, (12, 3): 30}
    assert proc.cpu_s_between(before, after) * proc.TICKS_PER_S == pytest.approx(200)


@given(st.integers(documents.DOC_BYTES_MIN, 2000), st.integers(0, 1000))
def test_a_document_has_the_length_asked_for(doc_bytes: int, seed: int) -> None:
    body = documents.body(random.Random(seed), doc_bytes, documents.NUMBER_FIRST + seed)
    assert len(body) == doc_bytes
    assert json.loads(body)["number"] == documents.NUMBER_FIRST + seed
    assert body == documents.body(random.Random(seed), doc_bytes, documents.NUMBER_FIRST + seed)


def test_a_document_cannot_be_shorter_than_its_members() -> None:
    with pytest.raises(ValueError, match="at least"):
        documents.body(random.Random(1), documents.DOC_BYTES_MIN - 1, documents.NUMBER_FIRST)


def test_an_answer_has_id_and_revision_in_front() -> None:
    assert documents.with_id("a", b'{"n":1}', "1-b") == b'{"_id":"a","_rev":"1-b","n":1}'
    assert documents.with_id("a", b'{"n":1}') == b'{"_id":"a","n":1}'


def test_bulk_requests_hold_the_same_documents_under_new_ids() -> None:
    bodies = [b'{"n":1}', b'{"n":2}', b'{"n":3}']
    requests = documents.bulk_bodies(random.Random(1), bodies)
    docs = [doc for _ in range(4) for doc in json.loads(next(requests))["docs"]]
    assert [doc["n"] for doc in docs] == [1, 2, 3] * 4
    assert len({doc["_id"] for doc in docs}) == 12
    assert all(len(doc["_id"]) == 32 for doc in docs)


def test_the_same_seed_gives_the_same_ids() -> None:
    ids = documents.ids(random.Random(5), 3)
    assert ids == documents.ids(random.Random(5), 3)
    assert all(len(doc_id) == 32 and int(doc_id, 16) >= 0 for doc_id in ids)
