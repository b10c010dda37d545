"""The pure parts of replications, and one side of them against servers of other kinds."""

import asyncio
import dataclasses
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from divandb.auth.policy import UserContext
from divandb.config import Limits
from divandb.errors import BadRequest, Busy, NotFound, ReplicationFailed, Unauthorized
from divandb.replication import batches, checkpoints, request
from divandb.replication.backoff import Backoff
from divandb.replication.batches import Wanted
from divandb.replication.checkpoints import HISTORY_MAX, Counts, is_same, next_log, start_of
from divandb.replication.end import End
from divandb.replication.inside import ACTING, Hall, Inside
from divandb.replication.jobs import Jobs
from divandb.replication.placement import slot_for
from divandb.replication.request import Side
from divandb.replication.run import Run
from tests.stores import Lines, SeededRng, StillClock

ADMIN = UserContext("admin", ("_admin",))
URL = "https://kim:p%40ss@example.com:6984/db"

# What is asked for


def parsed(**members: Any) -> request.Replication:
    return request.parse({"source": URL, "target": "here", **members}, ADMIN)


def test_credentials_are_taken_out_of_urls() -> None:
    what = parsed()
    assert what.source.url == "https://example.com:6984/db/"
    assert what.source.user == "kim"
    assert what.source.headers["authorization"] == "Basic a2ltOnBAc3M="
    assert "p@ss" not in what.source.shown and what.target.shown == "here"


@pytest.mark.parametrize(
    "members",
    [
        {"source": None}, {"source": "ftp://a/b"}, {"source": "http://host/"}, {"source": {}},
        {"source": "http://h:port/db"}, {"target": {"url": "t", "headers": {"a": "b\r\nc"}}},
        {"target": {"url": "t", "headers": {"Host": "other"}}},
        {"doc_ids": "a"}, {"doc_ids": [1]}, {"selector": []}, {"continuous": 1},
        {"since_seq": True}, {"checkpoint_interval": "5"}, {"proxy": "http://p"},
        {"doc_ids": [], "filter": "a/b"},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        parsed(**members)


def test_an_id_names_what_is_replicated_and_not_how_somebody_logs_in() -> None:
    same = parsed(source="https://kim:other@example.com:6984/db/")
    assert same.id("c") == parsed().id("c") == parsed(continuous=True).id("c")
    others = [
        parsed(source="https://lee:p@example.com:6984/db"), parsed(target="there"),
        parsed(doc_ids=["a"]), parsed(selector={"a": 1}), parsed(filter="d/f"),
        parsed(filter="d/f", query_params={"a": "b"}), parsed(winning_revs_only=True),
    ]  # fmt: skip
    ids = {what.id("c") for what in [*others, parsed()]} | {parsed().id("another cluster")}
    assert len(ids) == len(others) + 2
    assert parsed(doc_ids=["b", "a", "a"]).id("c") == parsed(doc_ids=["a", "b"]).id("c")
    assert parsed(continuous=True).job_id("c") == parsed().id("c") + "+continuous"


# Checkpoints

POUCHDB: dict[str, Any] = {
    "_id": "_local/pouch", "version": 1, "replicator": "pouchdb", "session_id": "S2",
    "last_seq": "20-x", "history": [
        {"last_seq": "20-x", "session_id": "S2"}, {"last_seq": "10-x", "session_id": "S1"},
    ],
}  # fmt: skip
COUCHDB: dict[str, Any] = {
    "_id": "_local/couch", "replication_id_version": 3, "session_id": "S2",
    "source_last_seq": "20-x", "history": [
        {"session_id": "S2", "recorded_seq": "20-x", "start_last_seq": "10-x"},
        {"session_id": "S1", "recorded_seq": "10-x", "start_last_seq": 0},
    ],
}  # fmt: skip


@pytest.mark.parametrize("log", [POUCHDB, COUCHDB])
def test_logs_of_couchdb_and_pouchdb_are_read(log: dict[str, Any]) -> None:
    assert start_of(log, log) == "20-x"
    gone_on = {**log, "session_id": "S3", "source_last_seq": "30-x", "last_seq": "30-x"}
    assert start_of(gone_on, log) == start_of(log, gone_on) == "20-x"
    assert start_of(log, None) == start_of(None, log) == start_of(log, {}) == 0


def test_of_two_sequences_of_a_session_the_lower_one_counts() -> None:
    older = {**COUCHDB, "source_last_seq": "15-y"}
    assert start_of(COUCHDB, older) == start_of(older, COUCHDB) == "15-y"
    strange = {"session_id": "S2", "source_last_seq": "abc"}
    assert start_of(COUCHDB, strange) == 0


def test_sequences_of_a_place_may_differ_behind_the_number() -> None:
    assert is_same("7-a", "7-b") and is_same(7, "7-b") and is_same("x", "x")
    assert not is_same("7-a", "8-a") and not is_same("x", "y")


sessions = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 50)), max_size=6)


@given(sessions, sessions)
def test_whatever_logs_say_both_sides_know_where_it_begins(
    source: list[tuple[str, int]], target: list[tuple[str, int]]
) -> None:
    def log(told: list[tuple[str, int]]) -> dict[str, Any]:
        history = [{"session_id": name, "recorded_seq": seq} for name, seq in told]
        first = {"session_id": told[0][0], "source_last_seq": told[0][1]} if told else {}
        return {**first, "history": history}

    start = start_of(log(source), log(target))
    assert start == start_of(log(source), log(target))
    shared = {name for name, _ in source} & {name for name, _ in target}
    assert start == 0 or start in {seq for name, seq in source + target if name in shared}
    for name in shared:
        assert start <= max(seq for one, seq in source + target if one in shared), name


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.integers(0, 9)), min_size=1))
def test_a_log_says_where_to_go_on_however_many_came_before(told: list[tuple[str, int]]) -> None:
    log: dict[str, Any] | None = None
    for session, seq in told:
        log = next_log(log, session, (0, "then"), (seq, "now"), Counts(docs_read=1))
        assert start_of(log, log) == seq
    assert log is not None
    names = [entry["session_id"] for entry in log["history"]]
    assert len(names) == len(set(names)) <= HISTORY_MAX
    assert log["replication_id_version"] == checkpoints.VERSION
    assert log["history"][0]["docs_read"] == 1


# Batches, back-off, placement


@given(st.lists(st.binary(max_size=40)), st.integers(1, 60))
def test_bodies_hold_everything_in_order_and_are_bounded(docs: list[bytes], most: int) -> None:
    groups = list(batches.bodies(docs, most))
    assert [doc for group in groups for doc in group] == docs
    assert all(len(group) == 1 or sum(map(len, group)) <= most for group in groups)


def test_a_body_keeps_documents_as_they_are() -> None:
    body = batches.bulk_body([b'{"n": 123456789012345678901234567890}', b"{}"])
    assert b"123456789012345678901234567890" in body
    assert json.loads(body)["new_edits"] is False and len(json.loads(body)["docs"]) == 2


@given(st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_portions_hold_everything_in_order(ids: list[str], most: int) -> None:
    wanted = [Wanted(doc_id, "1-a") for doc_id in ids]
    portions = list(batches.portions(wanted, most))
    assert [one for portion in portions for one in portion] == wanted
    assert all(0 < len(portion) <= most for portion in portions)


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=60))
def test_waits_grow_up_to_a_bound_and_begin_anew(chances: list[float]) -> None:
    backoff = Backoff(100, 5_000)
    for count, chance in enumerate(chances):
        most_s = min(100 * 2**count, 5_000) / 1000
        assert most_s / 2 <= backoff.failed(chance) <= most_s
    backoff.went_well()
    assert backoff.failed(0.0) == 0.1


@given(st.text(max_size=5), st.sets(st.sampled_from(["m1", "m2", "m3", "m4"]), min_size=2))
def test_only_what_a_lost_slot_ran_moves(doc_id: str, slots: set[str]) -> None:
    chosen = slot_for(doc_id, slots)
    assert chosen in slots and slot_for(doc_id, sorted(slots)) == chosen
    for other in slots - {chosen}:
        assert slot_for(doc_id, slots - {other}) == chosen
    assert slot_for(doc_id, []) is None


def test_slots_share_the_work() -> None:
    chosen = [slot_for(f"doc{n}", ["m1", "m2", "m3"]) for n in range(300)]
    assert all(chosen.count(slot) > 60 for slot in ("m1", "m2", "m3"))


# Requests to the node itself


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what came, piece by piece."""
    start = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": [(b"x-user", scope[ACTING].name.encode())]})
    while (message := await receive())["more_body"]:
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    await send({"type": "http.response.body", "body": scope["raw_path"]})


def test_a_node_asks_itself_in_pieces_and_as_somebody() -> None:
    async def scenario() -> None:
        hall = Hall()
        async with httpx.AsyncClient(transport=Inside(hall, ADMIN)) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("http://here/")
            hall.app = echo

            async def body() -> Any:
                for _ in range(100):
                    yield b"x" * 10

            answer = await client.post("http://here/a%2Fb?c=d", content=body())
            assert answer.content == b"x" * 1000 + b"/a%2Fb"
            assert answer.headers["x-user"] == "admin"

    asyncio.run(scenario())


def test_a_fault_of_the_application_ends_the_request() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("broken")

    async def scenario() -> None:
        hall = Hall()
        hall.app = broken
        async with httpx.AsyncClient(transport=Inside(hall, ADMIN)) as client:
            with pytest.raises(httpx.ReadError, match="broken"):
                await client.get("http://here/")

    asyncio.run(scenario())


# Against servers that are not like ours


class Fake:
    """A CouchDB of a few answers, by method and path; it remembers what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, bytes]] = []
        self.gate: asyncio.Event | None = None
        """Until it is set nobody is answered."""

    async def __call__(self, sent: httpx.Request) -> httpx.Response:
        path = sent.url.path.removeprefix("/db/")
        path = "_local/name" if path.startswith("_local/") else path
        name = f"{sent.method}_{path.strip('_').replace('/', '_') or 'db'}"
        self.asked.append((sent.method, str(sent.url), await sent.aread()))
        if self.gate is not None:
            await self.gate.wait()
        found = self.answers.get(name, (404, {"error": "not_found", "reason": "missing"}))
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]

        async def pieces() -> Any:
            yield json.dumps(found[1]).encode()

        return httpx.Response(found[0], content=pieces())

    def end(self) -> End:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return End(Side("http://fake/db/"), client, StillClock(), SeededRng(1))


BIG = 2**70


async def no_rest(busy_s: float) -> None:
    """Nobody else is here."""


def run(source: Fake, target: Fake, **members: Any) -> tuple[Run, dict[str, Any]]:
    what = request.parse({"source": "s", "target": "t", **members}, ADMIN)
    made = Run(
        what, "name", (source.end(), target.end()), StillClock(), SeededRng(2), Limits(), no_rest,
        lambda: None,
    )  # fmt: skip
    return made, asyncio.run(made.go())


def source_of(*docs: dict[str, Any], **answers: Any) -> Fake:
    rows = [{"id": d["_id"], "changes": [{"rev": d["_rev"]}], "seq": 1} for d in docs]
    found = [{"id": d["_id"], "docs": [{"ok": d}]} for d in docs]
    given: dict[str, Any] = {
        "GET_db": (200, {}), "GET_changes": (200, {"results": rows, "last_seq": "9-z"}),
        "POST_bulk_get": (200, {"results": found}), "PUT_local_name": (201, {"rev": "0-1"}),
    }  # fmt: skip
    return Fake(**given | answers)


def target_of(*docs: dict[str, Any], **answers: Any) -> Fake:
    diff = {d["_id"]: {"missing": [d["_rev"]]} for d in docs}
    given: dict[str, Any] = {
        "GET_db": (200, {}), "POST_revs_diff": (200, diff), "POST_bulk_docs": (201, []),
        "PUT_local_name": (201, {"rev": "0-1"}),
    }  # fmt: skip
    return Fake(**given | answers)


def docs(*ids: str) -> list[dict[str, Any]]:
    return [{"_id": doc_id, "_rev": "1-a", "n": BIG} for doc_id in ids]


def test_numbers_that_we_could_not_store_pass_through() -> None:
    target = target_of(*docs("a"))
    made, answer = run(source_of(*docs("a")), target)
    (stored,) = [body for method, url, body in target.asked if url.endswith("_bulk_docs")]
    assert str(BIG).encode() in stored
    assert answer["source_last_seq"] == "9-z" and made.counts.docs_written == 1


def test_one_document_that_is_refused_does_not_keep_others_away() -> None:
    whole, one = (400, {"error": "bad_request", "reason": "no"}), (201, [])
    target = target_of(*docs("a", "b", "c"), POST_bulk_docs=[whole, one, whole, one])
    made, _ = run(source_of(*docs("a", "b", "c")), target)
    assert (made.counts.docs_written, made.counts.doc_write_failures) == (2, 1)


def test_what_validation_forbids_is_counted() -> None:
    row = {"id": "a", "rev": "1-a", "error": "forbidden", "reason": "no"}
    made, answer = run(source_of(*docs("a")), target_of(*docs("a"), POST_bulk_docs=(201, [row])))
    assert answer["history"][0]["doc_write_failures"] == made.counts.doc_write_failures == 1


def test_who_may_write_no_more_loses_no_document() -> None:
    refusal = (401, {"error": "unauthorized", "reason": "no"})
    with pytest.raises(Unauthorized):
        run(source_of(*docs("a", "b")), target_of(*docs("a", "b"), POST_bulk_docs=refusal))
    doc = {"_id": "a", "_rev": "1-a", "_attachments": {"x": {"stub": True}}}
    target = target_of(doc, PUT_a=refusal, GET_db=[(200, {}), refusal])
    with pytest.raises(Unauthorized):
        run(source_of(doc, GET_a=(200, doc)), target)
    # A document that validation refuses is another thing.
    made, _ = run(source_of(doc, GET_a=(200, doc)), target_of(doc, PUT_a=(403, {})))
    assert (made.counts.docs_written, made.counts.doc_write_failures) == (0, 1)


def test_an_answer_that_makes_no_sense_is_a_failure() -> None:
    for answer in ([], {"results": 1}):
        with pytest.raises(ReplicationFailed, match="_changes"):
            run(source_of(GET_changes=(200, answer)), target_of())


def test_a_source_without_bulk_get_is_asked_for_one_after_the_other() -> None:
    (doc,) = docs("a")
    source = source_of(doc, POST_bulk_get=(404, {}), GET_a=(200, doc))
    made, _ = run(source, target_of(doc, PUT_a=(201, {})))
    assert made.counts.docs_written == 1


def test_attachments_that_the_target_lost_are_sent_whole() -> None:
    doc = {"_id": "a", "_rev": "2-b", "_attachments": {"x": {"stub": True}}}
    diff = {"a": {"missing": ["2-b"], "possible_ancestors": ["1-a"]}}
    source = source_of(doc, GET_a=(200, doc))
    target = target_of(POST_revs_diff=(200, diff), PUT_a=[(412, {}), (201, {})])
    made, _ = run(source, target)
    asked = [url for method, url, _ in source.asked if "/db/a?" in url]
    assert ["atts_since" in url for url in asked] == [True, False]
    assert made.counts.docs_written == 1 and made.counts.doc_write_failures == 0


def test_a_fault_that_passes_is_not_noticed_and_one_that_stays_is_told() -> None:
    busy = (503, {"error": "service_unavailable", "reason": "later"})
    target = target_of(*docs("a"), POST_bulk_docs=[busy, (201, [])])
    assert run(source_of(*docs("a")), target)[0].counts.docs_written == 1
    with pytest.raises(ReplicationFailed, match="503"):
        run(source_of(*docs("a")), target_of(*docs("a"), POST_bulk_docs=busy))


def test_nothing_is_written_when_nothing_is_new() -> None:
    log = {**COUCHDB, "source_last_seq": "9-z"}
    source = source_of(GET_local_name=(200, log))
    target = target_of(GET_local_name=(200, log))
    _, answer = run(source, target)
    assert answer["no_changes"] is True and answer["session_id"] == "S2"
    assert not [method for method, *_ in source.asked + target.asked if method == "PUT"]
    assert "since=9-z" in next(url for _, url, _ in source.asked if "_changes" in url)


# Jobs


class Bench:
    """A node's jobs, all between these two servers."""

    def __init__(self, source: Fake, target: Fake, **limits: int) -> None:
        sides = {"http://s/db/": source, "http://t/db/": target}
        self.clock = StillClock()
        self.jobs = Jobs(
            "m1", "cluster", lambda side, user: sides[side.url].end(), self.clock, SeededRng(3),
            dataclasses.replace(Limits(), **limits), no_rest, Lines(),
        )  # fmt: skip

    def what(self, user: UserContext = ADMIN, **members: Any) -> request.Replication:
        asked = {"source": "http://s/db", "target": "http://t/db", **members}
        return request.parse(asked, user)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


def test_there_is_room_for_so_many_and_the_next_of_a_document_waits() -> None:
    async def scenario() -> None:
        source = source_of()
        source.gate = asyncio.Event()
        bench = Bench(source, target_of(), replication_jobs_max=1)
        first = bench.jobs.begin(bench.what())
        await bench.until(lambda: first.state == "running")
        assert bench.jobs.begin(bench.what()) is first
        with pytest.raises(Busy):
            bench.jobs.begin(bench.what(doc_ids=["a"]))
        bench.jobs.keep("doc", bench.what(winning_revs_only=True))
        assert bench.jobs.kept()["doc"].state == "pending"
        source.gate.set()
        assert (await bench.jobs.result(first))["ok"] is True
        await bench.until(lambda: bench.jobs.kept()["doc"].state == "completed")
        await bench.jobs.close()

    asyncio.run(scenario())


def test_a_job_crashes_and_begins_anew_until_it_is_dropped() -> None:
    async def scenario() -> None:
        source = source_of(GET_db=[(404, {}), (404, {}), (200, {})])
        bench = Bench(source, target_of(), replication_backoff_ms=10)
        bench.jobs.keep("doc", bench.what(continuous=True))
        job = bench.jobs.kept()["doc"]
        await bench.until(lambda: len(job.history) >= 6)
        asked = len(source.asked)
        await asyncio.sleep(0.1)
        # It does not wait for changes when it is asked to: it is not asked on and on.
        assert len(source.asked) <= asked + 3
        kinds = [event["type"] for event in reversed(job.history)]
        assert kinds == ["added", "started", "crashed", "started", "crashed", "started"]
        (row,) = bench.jobs.shown()
        assert row["state"] == "running" and row["source"] == "http://s/db/"
        await bench.jobs.drop("doc")
        assert job.task is not None and job.task.done() and bench.jobs.shown() == []

    asyncio.run(scenario())


def test_others_may_not_cancel_what_a_user_asked_for() -> None:
    async def scenario() -> None:
        kim, lee = UserContext("kim"), UserContext("lee")
        bench = Bench(source_of(), target_of())
        job = bench.jobs.begin(bench.what(kim, continuous=True))
        with pytest.raises(Unauthorized):
            await bench.jobs.cancel(job.id, lee)
        assert await bench.jobs.cancel(job.id, kim) is True
        assert await bench.jobs.cancel(job.id, ADMIN) is False

    asyncio.run(scenario())


def test_who_waits_for_a_replication_hears_why_it_failed_or_that_it_was_cancelled() -> None:
    async def scenario() -> None:
        bench = Bench(source_of(GET_db=(404, {})), target_of())
        with pytest.raises(NotFound, match="could not open http://fake/db/"):
            await bench.jobs.result(bench.jobs.begin(bench.what()))
        source = source_of()
        source.gate = asyncio.Event()
        bench = Bench(source, target_of())
        job = bench.jobs.begin(bench.what())
        await bench.jobs.cancel(job.id, ADMIN)
        with pytest.raises(NotFound, match="cancelled"):
            await bench.jobs.result(job)

    asyncio.run(scenario())
