"""Reading one's own writes, never going back, missing nothing: while moving between nodes."""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from divandb.cluster import sessions
from divandb.vector import covers
from tests.running import BOARD, Cluster, basic, clustered
from tests.system.load import ancestry, load, trees_of
from tests.system.wire import Answer, Wire, faults

ROUNDS = 200
PARALLEL_ROUNDS = 30
HOP_S = 6.0
"""How long writers write while readers hop."""
VISIBLE_MS_MAX = 1_000
SILENT_MS = 1_000
NO_WRITES = sessions.text({}, {})


@contextlib.contextmanager
def wires(cluster: Cluster, *nodes: str) -> Iterator[dict[str, Wire]]:
    """A connection to each of these nodes. A connection remembers what was written on it: tests
    of tokens read on others.
    """
    found = {node: Wire(cluster.port_of(node), cluster.credentials) for node in nodes}
    try:
        yield found
    finally:
        for wire in found.values():
            wire.close()


def token_of(answer: Answer) -> dict[str, str]:
    """The header that carries the session on."""
    return {"divan-session": answer.headers["divan-session"]}


# --- Session tokens


def test_what_was_written_is_read_with_its_token_at_a_replica_of_another_group(
    cluster: Cluster, db: str
) -> None:
    chance = random.Random(1)
    with wires(cluster, *cluster.replicas) as writing, wires(cluster, *cluster.replicas) as reading:
        for number in range(ROUNDS):
            writer = chance.choice(cluster.replicas)
            reader = chance.choice([name for name in cluster.replicas if name[:2] != writer[:2]])
            written = writing[writer].ask("PUT", f"/{db}/{number}", {"n": number})
            assert written.status == 201, written
            read = reading[reader].ask("GET", f"/{db}/{number}", headers=token_of(written))
            assert read.status == 200, f"round {number}: {writer} wrote, {reader} had nothing"
            assert read.json["n"] == number


def test_the_lane_takes_a_token_and_answers_as_the_normal_way_does(
    cluster: Cluster, db: str
) -> None:
    """Which way a request went shows in the order of the headers."""
    with wires(cluster, *cluster.nodes) as own:
        for node, wire in own.items():
            written = wire.ask("PUT", f"/{db}/{node}", {"n": 1})
            sent = token_of(written)
            path = f"/{db}/{node}"
            deadline = time.monotonic() + 20
            while True:  # what was written may be on its way yet, and so may others' writes
                lane = wire.ask("GET", path, headers=sent)
                normal = wire.ask("GET", path, headers={**sent, "x-other": "way"})
                assert [lane.status, normal.status] == [200, 200]
                assert not is_of_the_lane(normal)
                if is_of_the_lane(lane) and tidy(lane) == tidy(normal):
                    break
                assert time.monotonic() < deadline, (lane, normal)
                time.sleep(0.02)
            body = {"n": 2, "_rev": written.json["rev"]}
            again = wire.ask("PUT", path, body, token_of(lane))
            assert (again.status, is_of_the_lane(again)) == (201, True)
            token = sessions.parse(again.headers["divan-session"]).vector
            read = wire.ask("GET", path, headers=token_of(again))
            assert covers(sessions.parse(read.headers["divan-session"]).vector, token)


def is_of_the_lane(answer: Answer) -> bool:
    """It says first how the node stands, the normal way last."""
    names = [name.lower() for name in answer.headers]
    return names.index("divan-lag") < names.index("content-length")


def tidy(answer: Answer) -> tuple[dict[str, str], bytes]:
    """What is the same for the same state."""
    left_out = ("date", "divan-lag")
    return {n: v for n, v in answer.headers.items() if n not in left_out}, answer.body


def test_lists_and_changes_keep_the_promise_of_a_token_too(cluster: Cluster, db: str) -> None:
    chance = random.Random(2)
    token: dict[str, str] = {}
    with wires(cluster, *cluster.nodes) as writing, wires(cluster, *cluster.nodes) as reading:
        for number in range(ROUNDS // 4):
            writer, reader = chance.sample(cluster.nodes, 2)
            written = writing[writer].ask("POST", f"/{db}", {"n": number}, token)
            assert written.status == 201, written
            doc_id, token = written.json["id"], token_of(written)
            rows = reading[reader].ask("GET", f"/{db}/_all_docs", headers=token).json["rows"]
            assert doc_id in {row["id"] for row in rows}
            path = f"/{db}/_changes?descending=true&limit=100"
            rows = reading[reader].ask("GET", path, headers=token).json["results"]
            assert doc_id in {row["id"] for row in rows}
            info = reading[reader].ask("GET", f"/{db}", headers=token).json
            assert info["doc_count"] >= number + 1


def test_cookies_alone_carry_a_session_between_nodes(cluster: Cluster, db: str) -> None:
    """As browsers, PouchDB and requests.Session carry them: the port means nothing to them."""
    chance = random.Random(3)
    with httpx.Client(auth=(cluster.admin, cluster.password), timeout=30) as client:
        for number in range(ROUNDS // 2):
            writer, reader = chance.sample(cluster.nodes, 2)
            path = f"/{db}/{number}"
            written = client.put(own_url(cluster, writer) + path, json={"n": number})
            assert written.status_code == 201, written.text
            assert any(name.endswith(f"-{writer[:2]}") for name in client.cookies)
            read = client.get(own_url(cluster, reader) + path)
            assert read.status_code == 200, f"round {number}: {writer} wrote, {reader} had nothing"


def test_parallel_writes_through_two_masters_keep_both_cookies(cluster: Cluster, db: str) -> None:
    """Trace 24: neither answer overwrites what the other's says."""
    with httpx.Client(auth=(cluster.admin, cluster.password), timeout=30) as client:
        for number in range(PARALLEL_ROUNDS):
            nodes = ("m1", "m2-r1")
            paths = {node: f"/{db}/{number}-{node}" for node in nodes}

            def write(node: str, paths: dict[str, str] = paths) -> None:
                answer = client.put(own_url(cluster, node) + paths[node], json={})
                assert answer.status_code == 201, answer.text

            both(*(lambda node=node: write(node) for node in nodes))
            assert {"m1", "m2"} <= {name.rpartition("-")[2] for name in client.cookies}
            for path in paths.values():
                answer = client.get(own_url(cluster, "m3-r2") + path)
                assert answer.status_code == 200, f"round {number}: {path} is not there"


def own_url(cluster: Cluster, node: str) -> str:
    url: str = cluster.record(node)["url"]
    return url


def both(*actions: Callable[[], None]) -> None:
    """At the same time; raises what one of them raised."""
    problems: list[BaseException] = []

    def attempt(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=attempt, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if problems:
        raise problems[0]


def test_a_reader_with_the_header_never_goes_back_in_time(cluster: Cluster, db: str) -> None:
    done = threading.Event()
    chance = random.Random(5)

    def write() -> None:
        with wires(cluster, "m1") as own:
            answer = own["m1"].ask("PUT", f"/{db}/counter", {"n": 0})
            for number in range(1, ROUNDS):
                if done.is_set():
                    break
                body = {"n": number, "_rev": answer.json["rev"]}
                answer = own["m1"].ask("PUT", f"/{db}/counter", body)
                assert answer.status == 201, answer
                time.sleep(0.005)
        done.set()

    def read() -> None:
        seen, reads = -1, 0
        with wires(cluster, *cluster.nodes) as reading:
            headers = {"divan-session": NO_WRITES}
            while not done.is_set():
                node = chance.choice(cluster.nodes)
                answer = reading[node].ask("GET", f"/{db}/counter", headers=headers)
                headers = token_of(answer)
                reads += 1
                if answer.status == 404:
                    assert seen == -1, f"{node} knows nothing of what was read before"
                    continue
                number = answer.json["n"]
                assert number >= seen, f"{node} showed {number} after {seen}"
                seen = number
        assert seen > 10 and reads > 50

    def reading() -> None:
        try:
            read()
        finally:
            done.set()

    both(write, reading)


def test_a_document_that_was_deleted_is_made_again_over_the_same_connection(
    cluster: Cluster, db: str
) -> None:
    """The replica may not have the deletion yet, which the new revision is to extend."""
    with wires(cluster, "m1-r1") as found:
        wire, path = found["m1-r1"], f"/{db}/d"
        made = wire.ask("PUT", path, {})
        for _ in range(PARALLEL_ROUNDS):
            assert wire.ask("DELETE", f"{path}?rev={made.json['rev']}").status == 200
            made = wire.ask("PUT", path, {})
            assert made.status == 201, made.json


def test_an_unreadable_token_is_refused(cluster: Cluster, db: str) -> None:
    status, answer = cluster.request("GET", f"/{db}", headers={"divan-session": "!"}, node="m1")
    assert (status, answer["error"]) == (400, "bad_request")


def test_a_child_of_what_only_a_dead_master_has_is_taken_with_its_token(tmp_path: Path) -> None:
    """Trace 23: the client holds 1-a from a master that is dead, and writes 2-b elsewhere."""
    with clustered(tmp_path, "--no-restart", masters=2, replicas=1) as own:
        assert own.request("PUT", "/db")[0] == 201
        own.await_converged()
        with own.frozen(BOARD):
            status, said, content = own.exchange("PUT", "/db/doc", {"n": 1}, node="m1")
            own.kill_for_good("m1")
            assert status == 201, content
            first = json.loads(content)["rev"]
            body = {"n": 2, "_rev": first}
            status, answer = own.request("PUT", "/db/doc", body, node="m2")
            assert status == 409, answer
            token = {"divan-session": said["divan-session"]}
            status, answer = own.request("PUT", "/db/doc", body, token, node="m2")
            assert status == 201, answer
            second = answer["rev"]
        assert second.startswith("2-")
        own.restart()
        own.await_converged()
        (leaf,) = own.everywhere(lambda node: trees_of(own, node, "db", ["doc"])["doc"])
        assert ancestry(leaf) == [second, first]


# --- `_changes`


class Hopper(threading.Thread):
    """Follows `_changes`, each poll at another node."""

    def __init__(self, cluster: Cluster, db: str, number: int, feed: str) -> None:
        super().__init__(name=f"hopper {number}", daemon=True)
        self._db = db
        self._feed = feed
        self._random = random.Random(number)
        self._nodes = cluster.nodes
        self._wires = {
            node: Wire(cluster.port_of(node), cluster.credentials) for node in self._nodes
        }
        self._done = threading.Event()
        self.since = "0"
        self.seen: dict[str, set[str]] = {}
        self.polls = 0
        self.surprise: BaseException | None = None

    def run(self) -> None:
        """Hop until ``finish``."""
        try:
            while not self._done.is_set():
                self.poll()
                time.sleep(0.01)
        except BaseException as surprise:
            self.surprise = surprise

    def poll(self) -> tuple[int, int]:
        """One request: how many changes it gave, and how many wait."""
        node = self._random.choice(self._nodes)
        limit = self._random.randint(1, 50)
        query = f"style=all_docs&feed={self._feed}&timeout=200&limit={limit}&since={self.since}"
        answer = self._wires[node].ask("GET", f"/{self._db}/_changes?{query}")
        if answer.status == 404:  # dropped, and not yet made again
            return 0, 1
        assert answer.status == 200, answer
        self.polls += 1
        found = answer.json
        for row in found["results"]:
            self.seen.setdefault(row["id"], set()).update(each["rev"] for each in row["changes"])
        self.since = found["last_seq"]
        return len(found["results"]), found["pending"]

    def finish(self) -> None:
        """Stop hopping, and read the rest."""
        self._done.set()
        self.join(30)
        assert self.surprise is None, self.surprise
        assert not self.is_alive()
        deadline = time.monotonic() + 30
        while self.poll() != (0, 0):
            assert time.monotonic() < deadline, "the feed has no end"

    def close(self) -> None:
        """Stop, however far it came."""
        self._done.set()
        self.join(30)
        for wire in self._wires.values():
            wire.close()


@contextlib.contextmanager
def hopping(cluster: Cluster, db: str) -> Iterator[list[Hopper]]:
    hoppers = [
        Hopper(cluster, db, number, feed)
        for number, feed in enumerate(["normal", "longpoll", "normal", "longpoll"])
    ]
    try:
        for hopper in hoppers:
            hopper.start()
        yield hoppers
    finally:
        for hopper in hoppers:
            hopper.close()


def check_hoppers(cluster: Cluster, db: str, hoppers: list[Hopper]) -> None:
    """They have seen the last change of every document."""
    rows = cluster.request("GET", f"/{db}/_changes?style=all_docs")[1]["results"]
    assert len(rows) > 50
    for hopper in hoppers:
        hopper.finish()
        assert hopper.polls > 20
        for row in rows:
            revs = {each["rev"] for each in row["changes"]}
            missed = revs - hopper.seen.get(row["id"], set())
            assert not missed, f"{hopper.name} never saw {row['id']} {missed}"


def test_readers_that_hop_at_each_poll_miss_nothing(cluster: Cluster, db: str) -> None:
    """Traces 21 and 22: a cursor says as much as its page gave, and means the same elsewhere."""
    with hopping(cluster, db) as hoppers:
        with load(cluster, db, ["m1", "m2-r1", "m3", "m3-r3"]) as busy:
            time.sleep(HOP_S)
        cluster.await_converged()
        busy.check()
        check_hoppers(cluster, db, hoppers)


def test_readers_that_hop_go_on_when_a_database_is_dropped_and_made_again(
    cluster: Cluster, db: str
) -> None:
    """Trace 22: the number of a cursor lies beyond the end of the new database."""
    with hopping(cluster, db) as hoppers:
        with load(cluster, db, ["m1", "m2-r1"]) as busy:
            time.sleep(HOP_S / 3)
        cluster.await_converged()
        cluster.await_true(lambda: all(len(h.seen) > len(busy.docs) // 2 for h in hoppers))
        assert cluster.request("DELETE", f"/{db}", node="m2-r2")[0] == 200
        assert cluster.request("PUT", f"/{db}", node="m3")[0] == 201
        with load(cluster, db, ["m2", "m3-r1", "m1-r2"]) as after:
            time.sleep(HOP_S / 3)
        cluster.await_converged()
        after.check()
        check_hoppers(cluster, db, hoppers)


# --- Write concerns


def test_a_write_says_what_it_has_reached(cluster: Cluster, db: str) -> None:
    for node in ("m1", "m2-r3"):
        for concern in ("board", "visible"):
            by_header = f"/{db}/{node}-{concern}"
            status, said, _ = cluster.exchange(
                "PUT", by_header, {}, {"divan-concern": concern}, node=node
            )
            assert (status, said["divan-concern"]) == (201, concern)
            by_query = f"{by_header}-query?concern={concern}"
            status, said, _ = cluster.exchange("PUT", by_query, {}, node=node)
            assert (status, said["divan-concern"]) == (201, concern)
            bulk = {"docs": [{"_id": f"{node}-{concern}-{number}"} for number in range(3)]}
            status, said, _ = cluster.exchange(
                "POST", f"/{db}/_bulk_docs?concern={concern}", bulk, node=node
            )
            assert (status, said["divan-concern"]) == (201, concern)
        status, said, _ = cluster.exchange("PUT", f"/{db}/{node}-local", {}, node=node)
        assert (status, said["divan-concern"]) == (201, None)
        status, answer = cluster.request("PUT", f"/{db}/x?concern=everything", {}, node=node)
        assert (status, answer["error"]) == (400, "bad_request")


def test_what_is_visible_is_read_on_every_node_at_once(cluster: Cluster, db: str) -> None:
    chance = random.Random(6)
    with wires(cluster, *cluster.nodes) as writing, wires(cluster, *cluster.nodes) as reading:
        for number in range(20):
            node = chance.choice(cluster.nodes)
            headers = {"divan-concern": "visible"}
            answer = writing[node].ask("PUT", f"/{db}/{number}", {}, headers)
            assert (answer.status, answer.headers["divan-concern"]) == (201, "visible")
            for other, wire in reading.items():
                assert wire.ask("GET", f"/{db}/{number}").status == 200, (number, node, other)


def test_the_operator_sets_the_usual_concern(cluster: Cluster, db: str) -> None:
    path = "/_node/_local/_config/divan/write_concern"
    assert cluster.request("PUT", path, "board")[0] == 200
    try:
        for node in ("m1", "m3-r2"):
            # The first request checks the password: the second takes the fast lane.
            for name in ("slow", "fast"):
                status, said, _ = cluster.exchange("PUT", f"/{db}/{node}-{name}", {}, node=node)
                assert (status, said["divan-concern"]) == (201, "board")
            headers = {"divan-concern": "visible"}
            status, said, _ = cluster.exchange("PUT", f"/{db}/{node}-v", {}, headers, node=node)
            assert (status, said["divan-concern"]) == (201, "visible")
    finally:
        assert cluster.request("DELETE", path)[0] == 200
    status, said, _ = cluster.exchange("PUT", f"/{db}/local", {}, node="m3-r2")
    assert (status, said["divan-concern"]) == (201, None)


# --- Age


def test_every_answer_says_how_old_its_view_may_be(cluster: Cluster, db: str) -> None:
    for node in cluster.nodes:
        with wires(cluster, node) as own:
            wire = own[node]
            made = wire.ask("PUT", f"/{db}/{node}", {"n": 1})
            fast = wire.ask("PUT", f"/{db}/{node}", {"n": 2, "_rev": made.json["rev"]})
            read = wire.ask("GET", f"/{db}/{node}")
            tag = {"if-none-match": read.headers["etag"]}
            answers = [
                made,
                fast,
                read,
                wire.ask("GET", f"/{db}/{node}", headers=tag),
                wire.ask("PUT", f"/{db}/{node}", {"n": 3}),
                wire.ask("GET", f"/{db}/{node}?revs=true"),
                wire.ask("GET", f"/{db}/nothing"),
                wire.ask("GET", f"/{db}/_all_docs"),
                wire.ask("GET", f"/{db}/_changes"),
                wire.ask("POST", f"/{db}/_bulk_docs", {"docs": []}),
                wire.ask("GET", "/"),
                wire.ask("GET", "/nothing"),
                wire.ask("GET", "/_session", headers={"authorization": basic("nobody:x")}),
            ]
            statuses = [answer.status for answer in answers]
            expected = [201, 201, 200, 304, 409, 200, 404, 200, 200, 201, 200, 404, 401]
            assert statuses == expected, node
            for answer in answers:
                assert 0 <= int(answer.headers["divan-lag"]) < 10_000, (node, answer.headers)
                assert answer.headers["divan-silent"] is None


def test_a_request_for_a_younger_view_is_answered_by_a_master(cluster: Cluster, db: str) -> None:
    """A replica that is asked for no staleness at all passes the question on."""
    fresh = {"divan-max-staleness": "0"}
    with wires(cluster, "m1", "m1-r1") as own:
        for number in range(100):
            assert own["m1"].ask("PUT", f"/{db}/{number}", {}).status == 201
            answer = own["m1-r1"].ask("GET", f"/{db}/{number}", headers=fresh)
            assert answer.status == 200, number
        easy = own["m1-r1"].ask("GET", f"/{db}/0", headers={"divan-max-staleness": "60000"})
        assert easy.status == 200
        for bad in ("-1", "soon", ""):
            answer = own["m1-r1"].ask("GET", f"/{db}/0", headers={"divan-max-staleness": bad})
            assert answer.status == 400, bad


# --- Nodes that say nothing


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with two replicas each that lose patience soon; tests leave it in order."""
    with clustered(
        tmp_path_factory.mktemp("fragile"),
        masters=2,
        replicas=2,
        DIVANDB_CONCERN_WAIT_MS_MAX=str(VISIBLE_MS_MAX),
        DIVANDB_SILENT_SLOT_MS=str(SILENT_MS),
    ) as own:
        assert own.request("PUT", "/db")[0] == 201
        yield own
        assert faults(own) == ""


def test_visible_is_answered_in_time_and_says_how_far_it_got(fragile: Cluster) -> None:
    fragile.await_converged()
    headers = {"divan-concern": "visible"}
    with fragile.frozen("m2-r2"):
        began = time.monotonic()
        status, said, _ = fragile.exchange("PUT", "/db/seen", {}, headers, node="m1")
        took_s = time.monotonic() - began
        assert (status, said["divan-concern"], said["divan-visible"]) == (201, "board", "5/6")
        assert took_s < 3 * VISIBLE_MS_MAX / 1000
        # With its lease run out it answers nobody, and nobody waits for it.
        fragile.await_true(
            lambda: (
                fragile.exchange("PUT", f"/db/{uuid4().hex}", {}, headers, node="m1")[1][
                    "divan-concern"
                ]
                == "visible"
            ),
            wait_s_max=10,
        )
    fragile.await_converged()


def test_a_silent_slot_is_named_and_the_lag_stays_finite(fragile: Cluster) -> None:
    """Trace 27: a master that says nothing must not make every view look old for ever.

    The other master, which nobody is left to answer, no longer knows how old its view is.
    """
    fragile.await_converged()
    others = ["m1-r1", "m1-r2"]

    def said(node: str) -> tuple[str | None, str | None]:
        headers = fragile.exchange("GET", "/db", node=node)[1]
        return headers["divan-lag"], headers["divan-silent"]

    with fragile.frozen("m2"):
        for node in others:
            fragile.await_true(lambda node=node: said(node)[1] is not None, wait_s_max=10)
            lag, silent = said(node)
            assert silent is not None and silent.startswith("m2="), node
            assert int(silent.partition("=")[2]) >= SILENT_MS
            assert lag is not None and int(lag) < 3 * SILENT_MS, (node, lag)
        time.sleep(SILENT_MS / 1000)
        for node in others:
            assert int(said(node)[0] or "") < 3 * SILENT_MS, node
        status, answer = fragile.request("PUT", "/db/meanwhile", {}, node="m2-r1")
        assert status == 201, answer
    for node in fragile.nodes:
        fragile.await_true(lambda node=node: said(node)[1] is None, wait_s_max=10)
    fragile.await_converged()


def test_writes_at_a_replica_whose_master_is_silent_go_to_another(fragile: Cluster) -> None:
    fragile.await_converged()
    with fragile.frozen("m1"):
        for number in range(5):
            body = {"n": number}
            status, answer = fragile.request("PUT", f"/db/other-{number}", body, node="m1-r1")
            assert status == 201, answer
    fragile.await_converged()
    found: Any = fragile.everywhere(
        lambda node: [fragile.request("GET", f"/db/other-{n}", node=node)[0] for n in range(5)]
    )
    assert found == [200] * 5
