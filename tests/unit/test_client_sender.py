"""The client's core: what is sent to whom, and what is never sent twice."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb.client import calls
from divandb.client.errors import (
    ClientError,
    ConflictError,
    NoAnswerError,
    TooBusyError,
    UnavailableError,
    UncertainError,
)
from divandb.client.nodes import Nodes
from divandb.client.options import Options
from divandb.client.sender import Line, Sender
from divandb.client.tokens import Session
from divandb.client.wire import Answer, Fault, Kind, Repeat, Request, Rest, Send, Steps, T
from divandb.closest import GAIN_SHARE_MIN

URL = "http://given"
MEMBERS = [
    {"name": "m1", "role": "master", "slot": "m1", "url": "http://m1"},
    {"name": "m2", "role": "master", "slot": "m2", "url": "http://m2"},
    {"name": "m1-r1", "role": "replica", "slot": "m1", "url": "http://m1-r1"},
    {"name": "m2-r1", "role": "replica", "slot": "m2", "url": "http://m2-r1"},
]
LOST = Fault("it broke", is_sent=True)
REFUSED = Fault("no connection", is_sent=False)
FULL = Fault("pool", is_sent=False, is_ours=True)


class Time:
    """A clock and a source of chance that do what the test says."""

    def __init__(self) -> None:
        self.s = 1000.0

    def wall_ms(self) -> int:
        return int(self.s * 1000)

    def monotonic(self) -> float:
        return self.s

    def token(self, size: int) -> bytes:
        return b"\x01" * size

    def uniform(self) -> float:
        return 0.5


class World:
    """A client's core, and servers that answer what the test says."""

    def __init__(self, **changes: Any) -> None:
        self.time = Time()
        self.options = Options(**changes)
        self.nodes = Nodes([URL], self.options, self.time)
        self.sender = Sender(self.nodes, self.options, "u", "p", self.time, self.time)
        self.line = Line(self.sender, Session(), None, None)
        self.sent: list[Send] = []

    def know(self, rtt_ms: dict[str, float]) -> None:
        """These members are there, and so far away."""
        self.nodes.learn([one for one in MEMBERS if one["name"] in rtt_ms])
        for node in self.nodes.all():
            if node.name in rtt_ms:
                self.nodes.probed(node, rtt_ms[node.name] / 1000)

    def run(self, steps: Steps[T], respond: Callable[[Send], Answer | Fault]) -> T:
        """Carry the steps out."""
        found: Answer | Fault | None = None
        while True:
            try:
                effect = steps.send(found)
            except StopIteration as done:
                result: T = done.value
                return result
            if isinstance(effect, Rest):
                assert effect.s > 0
                self.time.s += effect.s
                found = None
            else:
                self.sent.append(effect)
                self.time.s += 0.001
                found = respond(effect)

    def first(self, kind: Kind, **changes: Any) -> str:
        return self.nodes.order(kind, **changes)[0].name


def ok(value: Any = None, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, named, orjson.dumps({"ok": True} if value is None else value))


def said(status: int) -> Answer:
    return Answer(status, {}, b'{"error":"e","reason":"r"}')


REQUESTS = {
    repeat: Request("PUT", "/x", Kind.WRITE, repeat, b"{}")
    for repeat in (Repeat.MARKED, Repeat.NEVER)
}
REQUESTS[Repeat.ALWAYS] = Request("GET", "/x")
OUTCOMES = st.sampled_from([LOST, REFUSED, said(503), said(502), said(421), said(409), ok()])


@settings(max_examples=300)
@given(st.sampled_from(Repeat), st.lists(OUTCOMES, min_size=1, max_size=12), st.booleans())
def test_what_cannot_be_repeated_is_never_sent_after_it_may_have_been_done(
    repeat: Repeat, outcomes: list[Answer | Fault], knows: bool
) -> None:
    world = World(retry_s_max=3.0)
    if knows:
        world.know({"m1": 1, "m2": 2, "m1-r1": 1})
    left = list(outcomes)
    given_out: list[Answer | Fault] = []

    def respond(_: Send) -> Answer | Fault:
        given_out.append(left.pop(0) if left else outcomes[-1])
        return given_out[-1]

    problem: ClientError | None = None
    try:
        answer = world.run(world.sender.ask(REQUESTS[repeat]), respond)
        assert answer.status in (200, 409)
    except ClientError as raised:
        problem = raised
    assert 0 < len(world.sent) <= world.options.attempts_max
    assert world.time.s <= 1000 + 2 * world.options.retry_s_max
    done = [
        (isinstance(one, Fault) and one.is_sent)
        or (isinstance(one, Answer) and one.status in (502, 503, 504))
        for one in given_out
    ]
    is_uncertain = any(done)
    if repeat is Repeat.NEVER and is_uncertain:
        assert done.index(True) == len(given_out) - 1, "it was sent again"
        assert isinstance(problem, UncertainError | UnavailableError)
    for place, effect in enumerate(world.sent):
        is_marked = "divan-repeat" in effect.headers
        assert is_marked == (repeat is Repeat.MARKED and any(done[:place]))
    if repeat is Repeat.ALWAYS:
        assert not isinstance(problem, UncertainError)
    if problem is None and repeat is Repeat.MARKED:
        assert answer.is_uncertain == is_uncertain
    if isinstance(problem, NoAnswerError):
        assert repeat is Repeat.ALWAYS or not is_uncertain


def test_a_read_that_gets_no_answer_goes_to_the_next_node() -> None:
    world = World()
    world.know({"m1": 1, "m1-r1": 1, "m2-r1": 3})
    answers = iter([LOST, REFUSED, ok(5)])
    assert world.run(world.line.read("/x"), lambda _: next(answers)) == 5
    assert [one.url for one in world.sent] == ["http://m1-r1/x", "http://m2-r1/x", "http://m1/x"]
    # Both have failed a moment ago: who answered is asked first.
    assert world.first(Kind.READ) == "m1"
    world.time.s += world.options.down_s_min + 0.1
    assert world.first(Kind.READ) == "m1-r1"


def test_a_request_that_was_refused_by_a_node_that_is_no_master_goes_on() -> None:
    world = World()
    world.know({"m1": 1, "m2": 2})
    answers = iter([said(421), ok({"rev": "1-a"})])
    steps = world.line.write("PUT", "/x", {}, Repeat.NEVER)
    assert world.run(steps, lambda _: next(answers)).status == 200
    assert [one.url for one in world.sent] == ["http://m1/x", "http://m2/x"]
    assert world.nodes.is_refresh_due


def test_a_conflict_after_an_attempt_without_an_answer_says_so() -> None:
    world = World()
    answers = iter([LOST, said(409)])
    with pytest.raises(ConflictError) as caught:
        world.run(calls.save(world.line, "/db", "d", {"_rev": "1-a"}), lambda _: next(answers))
    assert caught.value.is_uncertain
    with pytest.raises(ConflictError) as caught:
        world.run(calls.save(world.line, "/db", "d", {"_rev": "1-a"}), lambda _: said(409))
    assert not caught.value.is_uncertain


def test_a_local_document_is_not_sent_twice() -> None:
    """It has no conflict check: the later one wins, and a late repeat would be the later one."""
    world = World()
    with pytest.raises(UncertainError):
        world.run(calls.save(world.line, "/db", "_local/x", {}), lambda _: LOST)
    assert len(world.sent) == 1


def test_an_attachment_is_sent_again_only_if_it_names_its_parent_and_its_bytes_are_there() -> None:
    for rev, data, times in (("1-a", b"x", 2), (None, b"x", 1), ("1-a", iter([b"x"]), 1)):
        world = World()
        answers = iter([LOST, ok({"rev": "2-b"})])
        path = calls.attachment_path("/db", "d", "a", rev)
        try:
            steps = calls.put_attachment(world.line, path, data, "text/plain")
            assert world.run(steps, lambda _, answers=answers: next(answers)) == "2-b"
        except UncertainError:
            assert times == 1
        assert len(world.sent) == times


def test_a_database_whose_creation_got_no_answer_is_looked_for_if_it_may_exist() -> None:
    world = World()
    answers = iter([LOST, ok()])
    steps = calls.create_database(world.line, "/db", {}, exists_ok=True)
    world.run(steps, lambda _: next(answers))
    assert [one.method for one in world.sent] == ["PUT", "HEAD"]
    with pytest.raises(UncertainError):
        steps = calls.create_database(world.line, "/db", {}, exists_ok=False)
        world.run(steps, lambda _: LOST)


def test_a_pool_that_is_full_blames_no_node() -> None:
    world = World()
    world.know({"m1-r1": 1})
    with pytest.raises(TooBusyError):
        world.run(world.line.read("/x"), lambda _: FULL)
    assert world.nodes.all()[0].failures == 0


# Which node


def test_reads_go_to_replicas_and_writes_to_masters() -> None:
    world = World()
    world.know({"m1": 3, "m2": 2, "m1-r1": 4, "m2-r1": 5})
    assert world.first(Kind.READ) == "m1-r1"
    assert world.first(Kind.WRITE) == "m2"


def test_a_master_is_read_from_if_every_replica_is_far() -> None:
    world = World()
    world.know({"m1": 1, "m1-r1": 40})
    assert world.first(Kind.READ) == "m1"


def test_the_own_zone_comes_first() -> None:
    world = World(zone="eu")
    world.nodes.learn([{**one, "zone": "eu" if one["slot"] == "m2" else "us"} for one in MEMBERS])
    for node in world.nodes.members():
        world.nodes.probed(next(n for n in world.nodes.all() if n.name == node.name), 0.01)
    assert world.first(Kind.WRITE) == "m2"
    assert world.first(Kind.READ) == "m2-r1"


def test_a_node_whose_view_is_old_is_read_from_last() -> None:
    world = World()
    world.know({"m1-r1": 1, "m2-r1": 5})
    nodes = {node.name: node for node in world.nodes.all()}
    world.nodes.answered(nodes["m1-r1"], "unknown")
    assert world.first(Kind.READ) == "m2-r1"
    world.nodes.answered(nodes["m1-r1"], "300")
    world.nodes.answered(nodes["m2-r1"], "100")
    assert world.nodes.order(Kind.READ, 200)[0].name == "m2-r1"


def test_members_that_were_never_reached_come_behind_the_url_that_was_given() -> None:
    """What members call each other may mean nothing where the client is."""
    world = World()
    world.nodes.learn(MEMBERS)
    assert world.first(Kind.READ) == world.first(Kind.WRITE) == URL
    world.nodes.probed(world.nodes.all()[2], 0.001)
    assert world.first(Kind.READ) == "m1-r1"
    assert [node.name for node in world.nodes.order(Kind.READ)][1] == URL


def test_who_is_believed_dead_comes_last_until_it_answers() -> None:
    world = World()
    world.nodes.learn([{**one, "live": one["name"] != "m1-r1"} for one in MEMBERS])
    for node in world.nodes.all():
        node.rtt_s = 0.001 if node.name == "m1-r1" else 0.004
    assert world.first(Kind.READ) == "m2-r1"
    world.run(
        world.sender.probe(next(n for n in world.nodes.all() if n.name == "m1-r1")),
        lambda _: ok(),
    )
    assert world.first(Kind.READ) == "m1-r1"


@given(st.lists(st.tuples(st.sampled_from(["m1-r1", "m2-r1"]), st.floats(8.0, 10.0)), max_size=60))
def test_two_replicas_that_are_about_as_far_never_take_turns(
    measured: list[tuple[str, float]],
) -> None:
    assert GAIN_SHARE_MIN > (10 - 8) / 10
    world = World()
    world.know({"m1-r1": 9, "m2-r1": 9})
    nodes = {node.name: node for node in world.nodes.all()}
    chosen = {world.first(Kind.READ)}
    for name, rtt_ms in measured:
        world.nodes.probed(nodes[name], rtt_ms / 1000)
        chosen.add(world.first(Kind.READ))
    assert len(chosen) == 1


def test_a_node_that_became_far_is_left_and_one_that_became_close_is_found() -> None:
    world = World()
    world.know({"m1-r1": 1, "m2-r1": 3})
    nodes = {node.name: node for node in world.nodes.all()}
    assert world.first(Kind.READ) == "m1-r1"
    for _ in range(3):
        world.nodes.probed(nodes["m1-r1"], 0.031)
    assert world.first(Kind.READ) == "m2-r1"
    for _ in range(20):
        world.nodes.probed(nodes["m1-r1"], 0.001)
    assert world.first(Kind.READ) == "m1-r1"


# Who is there


def test_a_look_learns_the_members_and_measures_them() -> None:
    world = World()

    def respond(effect: Send) -> Answer | Fault:
        if effect.url.endswith("/_divan/topology"):
            assert effect.headers["authorization"].startswith("Basic ")
            return ok({"members": MEMBERS})
        assert "authorization" not in effect.headers
        return LOST if effect.url == "http://m2/_up" else ok(divan_lag="12")

    world.run(world.sender.look(), respond)
    found = {node.name: node for node in world.nodes.members()}
    assert found["m1-r1"].rtt_s is not None and found["m1-r1"].lag_ms == 12
    assert found["m2"].rtt_s is None and found["m2"].failures == 1


@pytest.mark.parametrize("answer", [said(404), said(401), Answer(200, {}, b"<html>"), ok([1])])
def test_a_server_that_tells_of_no_members_is_used_as_it_is(answer: Answer) -> None:
    world = World()
    world.run(world.sender.learn(), lambda _: answer)
    assert world.first(Kind.WRITE) == URL
    assert not world.nodes.is_refresh_due


def test_a_wrong_password_is_not_tried_again_and_again() -> None:
    world = World()
    for _ in range(3):
        world.run(world.sender.learn(), lambda _: said(401))
    assert len(world.sent) == 1
    world.run(world.sender.ask(Request("GET", "/x")), lambda _: ok())  # it was right after all
    world.run(world.sender.learn(), lambda _: ok({"members": MEMBERS}))
    assert len(world.nodes.members()) == 4


def test_without_direct_nobody_is_asked_for_members() -> None:
    world = World(direct=False)
    world.run(world.sender.look(), lambda _: ok())
    assert [one.url for one in world.sent] == [f"{URL}/_up"]
    assert not world.sender.is_choosing


def test_looking_goes_on_for_ever_and_learns_anew_when_a_node_failed() -> None:
    world = World(probe_every_s=1.0, refresh_every_s=1000.0)
    steps = world.sender.keep_looking()
    rests = 0
    found: Answer | Fault | None = None
    while rests < 4:
        effect = steps.send(found)
        if isinstance(effect, Rest):
            rests += 1
            found = None
            if rests == 2:
                world.nodes.failed(world.nodes.all()[0])
            continue
        world.sent.append(effect)
        is_topology = effect.url.endswith("topology")
        found = ok({"members": MEMBERS} if is_topology else None)
    assert sum(one.url.endswith("topology") for one in world.sent) == 2


# Sessions and other headers


def test_the_token_of_each_answer_goes_with_the_next_request() -> None:
    world = World()
    world.run(world.line.read("/x"), lambda _: ok(divan_session="abc"))
    world.run(world.line.read("/y"), lambda _: ok(divan_session_behind="true"))
    assert [one.headers["divan-session"] for one in world.sent] == ["kA", "abc"]
    assert world.line.session is not None and world.line.session.is_behind


def test_concern_goes_with_writes_and_staleness_with_reads() -> None:
    world = World()
    line = Line(world.sender, None, "board", 500)
    world.run(line.read("/x"), lambda _: ok())
    world.run(line.write("PUT", "/x", {}, Repeat.MARKED), lambda _: ok())
    read, write = world.sent
    assert read.headers["divan-max-staleness"] == "500" and "divan-concern" not in read.headers
    assert write.headers["divan-concern"] == "board"
    assert "divan-max-staleness" not in write.headers and "divan-session" not in write.headers


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="concern"):
        Options(concern="everything")
    with pytest.raises(ValueError, match="read_s_max"):
        Options(read_s_max=0)
