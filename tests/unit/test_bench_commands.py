"""The bench's commands with plots: what they print and draw is what was seen."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import comfort, load, plot, stats

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


def a_reading(p99_ms: float) -> comfort.Reading:
    return comfort.Reading(100, 100.0, 1.0, p99_ms, {}, [(1.0, p99_ms)])


def test_slices_are_joined_by_their_requests_not_by_their_percentiles() -> None:
    seen = comfort.reading([(1.0, a_slice({100: 990})), (2.0, a_slice({100: 1, 9000: 9}))])
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
