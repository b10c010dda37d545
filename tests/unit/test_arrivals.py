"""Other nodes' events in the file: in whatever order, however often, and whatever is in them."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb import event as events
from divandb import merge
from divandb.clock import COUNTER_BITS
from divandb.commands import CreateDatabase, Job, Purge, SetRegister
from divandb.event import CHUNK_BYTES, Chunk, Creation, Event, Payload, RegisterValue
from divandb.merge import Document
from divandb.store import arrivals, blobs, catchup, documents, outbox, registers
from divandb.store.catchup import End
from divandb.store.databases import Database
from divandb.store.ledger import Changes, Ledger
from divandb.store.outbox import Attached
from divandb.store.writer import Writer
from divandb.vector import covers, join
from tests.stores import SeededRng, Store, edit
from tests.unit.test_merge import History

NAME = "a"
ORIGIN, OTHER = 7, 8
LOCAL = "_local/c"
NOW_MS = 1_700_000_000_000


@contextmanager
def store(seed: int = 1) -> Iterator[Store]:
    folder = Path(tempfile.mkdtemp())
    opened = Store(folder, rng=SeededRng(seed))
    try:
        yield opened
        opened.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def node() -> Iterator[Store]:
    with store(9) as opened:
        yield opened


def take(node: Store, *messages: bytes) -> int:
    """Apply events in a transaction of their own; how many are holes."""
    holes: int = node.do(lambda ledger: arrivals.take(ledger, messages, node.clock.ms))
    return holes


def published(source: Store) -> list[bytes]:
    """All that a master has to publish."""
    found: list[bytes] = []
    for message in outbox.page(source.reader, 0, 10_000).messages:
        if isinstance(message, Attached):
            found += outbox.chunks(source.reader, message)
        else:
            found.append(message)
    return found


def event(
    kind: str, payload: Payload, oseq: int = 0, *, origin: int = ORIGIN, database: str = NAME,
    generation: int = 1, stamp: int = 0,
) -> bytes:  # fmt: skip
    """An event of write ``oseq``; with 0 it completes nothing."""
    after = max(oseq - 1, 0)
    return events.encode(
        Event(
            1, "m1", origin, oseq, after, oseq, stamp, kind, database,
            generation if database else 0, events.pack(payload),
        )
    )  # fmt: skip


def document_event(doc_id: str, oseq: int, **changed: Any) -> bytes:
    """A new document of write ``oseq``."""
    write = edit(doc_id, None, {"v": oseq})
    origin = changed.get("origin", ORIGIN)
    leaf = documents.Leaf(1, (write.rev_hash,), False, write.digest, (), ((origin, oseq),))
    state = events.DocumentState(doc_id, Document((leaf,), {origin: oseq}), (write.body,))
    return event(events.DOCUMENT, state, oseq, **changed)


def row_of(node: Store) -> Database:
    return node.ledger.register[NAME]


# How a database was created


def creation(node: Store) -> tuple[str, int]:
    (row,) = node.rows("SELECT options, created_ms FROM database WHERE name = ?", NAME)
    known = row_of(node)
    assert row == (known.options, known.created_ms)
    found: tuple[str, int] = row
    return found


def test_a_creation_that_comes_after_a_document_is_taken_over(node: Store) -> None:
    take(node, document_event("d", 2))
    assert creation(node) == ("{}", 0)
    heard: list[Changes | None] = []
    node.writer = Writer(
        node.master, node.limits, lambda jobs, changes: heard.append(changes), lambda fault: None
    )
    created = event(events.CREATED, Creation('{"partitioned":true}', 5), 1)
    job = _job(lambda ledger: arrivals.take(ledger, [created], NOW_MS))
    _, changes = node.writer.run([job])
    assert changes is not None
    assert changes.databases == {row_of(node).num}
    assert creation(node) == ('{"partitioned":true}', 5)
    _, changes = node.writer.run([_job(lambda ledger: arrivals.take(ledger, [created], NOW_MS))])
    assert changes is not None
    assert changes.databases == set()


def _job(command: Callable[[Ledger], object]) -> Any:
    return Job(command, 0, lambda job: None)


def test_the_mark_of_a_beginning_covers_nothing_that_comes_behind_it(node: Store) -> None:
    """A database is made by the event of its first document: that is still to be shown."""
    take(node, document_event("d", 1))
    ((seq, packed),) = node.rows("SELECT seq, vector FROM mark ORDER BY seq LIMIT 1")
    assert (seq, msgspec.msgpack.decode(packed)) == (0, {})
    assert node.ledger.vector == {ORIGIN: 1}


def test_marks_are_stored_where_they_are_due_within_one_batch(node: Store) -> None:
    take(node, *(document_event(f"d{n}", n) for n in range(1, 251)))
    found = node.rows("SELECT seq, vector FROM mark ORDER BY seq")
    assert [(seq, msgspec.msgpack.decode(packed)) for seq, packed in found] == [
        (0, {}), (100, {ORIGIN: 100}), (200, {ORIGIN: 200}),
    ]  # fmt: skip


def test_a_creation_is_not_forgotten_when_it_is_undone(node: Store) -> None:
    take(node, document_event("d", 2))

    def work(ledger: Ledger) -> None:
        arrivals.take(ledger, [event(events.CREATED, Creation('{"n":1}', 5), 1)], NOW_MS)
        raise RuntimeError("fault")

    with pytest.raises(RuntimeError):
        node.do(work)
    assert creation(node) == ("{}", 0)


CREATIONS = [
    event(events.CREATED, Creation('{"n":1}', 9), 1),
    event(events.CREATED, Creation('{"n":2}', 5), 1, origin=OTHER),
    event(events.CREATED, Creation('{"n":3}', 5)),
    event(events.CREATED, Creation("{}", 0)),
    document_event("d", 2),
    document_event("e", 2, origin=OTHER),
    event(events.DROPPED, None, 3),
    event(events.CREATED, Creation('{"n":4}', 7), 4, generation=2),
    event(events.CREATED, Creation('{"n":5}', 6), 3, origin=OTHER, generation=2),
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_creations_end_alike_in_any_order(data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(CREATIONS), min_size=1, max_size=8))
    ends = []
    for seed in (1, 2):
        order = data.draw(st.permutations(some + some[:2]))
        cut = data.draw(st.integers(0, len(order)))
        with store(seed) as one:
            take(one, *order[:cut])
            take(one, *order[cut:])
            known = row_of(one)
            ends.append((known.generation, known.dropped, known.options, known.created_ms))
            ids = [] if known.dropped else one.rows(
                "SELECT id FROM doc WHERE db = ? ORDER BY id", known.num
            )  # fmt: skip
            ends.append(tuple(ids))
    assert ends[:2] == ends[2:]


def test_masters_that_create_at_once_end_with_the_same_options() -> None:
    with store(1) as one, store(2) as other:
        other.clock.ms -= 1000
        one.create(NAME)
        other.do(_created('{"other":1}'))
        for here, there in ((one, other), (other, one)):
            take(here, *published(there))
        assert creation(one) == creation(other) == ('{"other":1}', other.clock.ms)
        # What is published later says the same.
        assert published(one)[0] != published(other)[0]
        take(other, *published(one))
        assert creation(one) == creation(other)


def _created(options: str) -> Any:
    return CreateDatabase(NAME, 1, options)


# Attachments in chunks


def chunks_of(data: bytes, name: bytes | None = None) -> list[bytes]:
    name = name or sha256(data).digest()
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)] or [b""]
    return [
        event(events.BLOB, Chunk(name, index, len(data), piece), database="")
        for index, piece in enumerate(pieces)
    ]


def held(node: Store, data: bytes) -> bool:
    """Is the attachment whole and as it was sent?"""
    name = sha256(data).digest()
    found = blobs.find(node.reader, name)
    if found is None:
        return False
    assert found[1] == len(data)
    assert b"".join(blobs.read(node.reader, name)) == data
    return True


DATA = SeededRng(3).token(4 * CHUNK_BYTES + 5)


@pytest.mark.parametrize("data", [b"", b"x", DATA[:CHUNK_BYTES], DATA])
@pytest.mark.parametrize("together", [True, False])
def test_a_blob_arrives_in_any_order_and_twice(node: Store, data: bytes, together: bool) -> None:
    sent = chunks_of(data) * 2
    random.Random(1).shuffle(sent)
    for some in [sent] if together else [[one] for one in sent]:
        take(node, *some)
    assert held(node, data)
    assert node.count("blob") == 1
    assert node.ledger.alarms.damaged_blobs == 0


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 0, 4, 2, 3)])
def test_a_blob_that_is_not_what_its_name_says_is_dropped(
    node: Store, order: Sequence[int]
) -> None:
    bad = bytearray(DATA)
    bad[CHUNK_BYTES + 1] ^= 1
    sent = chunks_of(bytes(bad), sha256(DATA).digest())
    assert take(node, *(sent[index] for index in order)) == 0
    assert not held(node, DATA)
    assert node.ledger.alarms.damaged_blobs == 1
    assert node.count("blob", "arriving IS NOT NULL") == 0
    take(node, *chunks_of(DATA))
    assert held(node, DATA)


def test_chunks_that_name_another_length_are_of_another_copy(node: Store) -> None:
    name = sha256(DATA).digest()
    short, long = DATA[: 2 * CHUNK_BYTES], DATA + b"more"
    for wrong in (short[:-1], long):
        take(node, chunks_of(wrong, name)[0])
    take(node, *chunks_of(DATA)[:3], *chunks_of(long, name)[1:4], *chunks_of(DATA)[3:])
    assert held(node, DATA)
    take(node, *chunks_of(short[:-1], name), *chunks_of(long, name))
    assert held(node, DATA)
    other = DATA[::-1]
    take(node, chunks_of(other + b"more", sha256(other).digest())[-1], *chunks_of(other))
    assert held(node, other)
    assert node.ledger.alarms.damaged_blobs == 0


def test_a_chunk_of_the_wrong_size_is_dropped_and_no_hole(node: Store) -> None:
    name = sha256(DATA).digest()
    torn = event(events.BLOB, Chunk(name, 0, len(DATA), b"short"), database="")
    assert take(node, torn, *chunks_of(DATA)) == 0
    assert node.ledger.alarms.damaged_blobs == 1
    assert node.count("hole") == 0
    assert held(node, DATA)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_sum_that_a_restart_forgot_is_taken_again(node: Store, in_order: bool) -> None:
    data = SeededRng(4).token((2 * blobs.SUM_CHUNKS_MAX + 3) * CHUNK_BYTES)
    sent = chunks_of(data)
    sent = sent if in_order else sent[::-1]
    take(node, *sent[:-1])
    node.close()
    node.open()
    take(node, sent[-1])
    assert held(node, data)


def test_a_chunk_that_was_undone_is_not_in_the_sum(node: Store) -> None:
    bad = chunks_of(DATA[:CHUNK_BYTES][::-1] + DATA[CHUNK_BYTES:], sha256(DATA).digest())

    def work(ledger: Ledger) -> None:
        arrivals.take(ledger, [bad[0]], NOW_MS)
        raise RuntimeError("fault")

    with pytest.raises(RuntimeError):
        node.do(work)
    take(node, *chunks_of(DATA))
    assert held(node, DATA)


def test_sums_are_remembered_of_a_bounded_number_of_blobs(
    node: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "SUMS_MAX", 2)
    several = [DATA[: CHUNK_BYTES + size] for size in range(1, 6)]
    for index in (0, 1):
        take(node, *(chunks_of(data)[index] for data in several))
    assert all(held(node, data) for data in several)


def test_a_large_event_may_stand_in_one_batch_with_its_pieces(node: Store) -> None:
    whole = document_event("d", 1)
    *pieces, stand_in = events.split(whole)
    assert take(node, stand_in) == 1
    assert take(node, *pieces, stand_in) == 0
    assert node.ledger.vector == {ORIGIN: 1}
    assert node.do(lambda ledger: arrivals.retry_holes(ledger, NOW_MS)) == 0


def test_a_large_event_holds_no_other_large_event(node: Store) -> None:
    *pieces, stand_in = events.split(document_event("d", 1))
    *outer, last = events.split(stand_in)
    assert take(node, *pieces, *outer, last) == 1
    assert ORIGIN not in node.ledger.vector


# `_local` documents that wait


def local_event(
    stamp: int, seen: dict[int, int], oseq: int = 0, key: str = LOCAL, number: int = 1
) -> bytes:
    value = b'{"_id":"%b","_rev":"0-%d"}' % (key.encode(), number)
    arrived = RegisterValue(registers.LOCAL, key, value, stamp, OTHER, oseq or stamp, seen)
    return event(events.REGISTER, arrived, oseq, origin=OTHER)


def local_of(node: Store, key: str = LOCAL) -> int | None:
    """The number of the `_local` document's revision."""
    found = registers.value(node.reader, row_of(node).num, registers.LOCAL, key)
    return int(msgspec.json.decode(found)["_rev"][2:]) if found else None


def test_only_the_latest_of_a_key_waits(node: Store) -> None:
    seen = {ORIGIN: 2}
    take(node, document_event("d", 1))
    for stamp in (3, 5, 4):
        take(node, local_event(stamp, seen, number=stamp))
    take(node, local_event(9, seen, key="_local/other", number=9))
    assert node.count("waiting") == 2
    assert local_of(node) is None
    take(node, document_event("e", 2))
    assert (local_of(node), local_of(node, "_local/other")) == (5, 9)
    assert node.count("waiting") == 0


def test_a_document_waits_for_one_write_after_the_other(node: Store) -> None:
    take(node, document_event("d", 1), local_event(3, {ORIGIN: 2, OTHER: 2}))
    first = node.rows("SELECT origin, oseq FROM waiting")
    take(node, document_event("e", 2))
    second = node.rows("SELECT origin, oseq FROM waiting")
    assert (first, second) == ([(ORIGIN, 2)], [(OTHER, 2)])
    take(node, document_event("f", 2, origin=OTHER))
    assert local_of(node) is None  # write 1 of OTHER is missing
    take(node, document_event("g", 1, origin=OTHER))
    assert local_of(node) == 1


def test_what_waited_for_a_dropped_database_is_forgotten(node: Store) -> None:
    take(node, document_event("d", 1), local_event(3, {ORIGIN: 3}))
    take(node, event(events.DROPPED, None, 2))
    take(node, event(events.CREATED, Creation("{}", 5), 3, generation=2))
    assert node.count("waiting") == 0
    assert local_of(node) is None


def test_nothing_is_read_of_what_waits_while_nothing_comes_that_it_waits_for(
    node: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(node, document_event("d", 1))
    take(node, *(local_event(3, {ORIGIN: 9}, key=f"_local/{number}") for number in range(50)))
    assert node.count("waiting") == 50
    opened: list[Event] = []
    whole = events.open_payload
    monkeypatch.setattr(
        events, "open_payload", lambda event, **kw: (opened.append(event), whole(event, **kw))[1]
    )
    take(node, *(document_event(f"e{oseq}", oseq) for oseq in range(2, 9)))
    assert len(opened) == 7
    take(node, document_event("e9", 9))
    assert len(opened) == 7 + 1 + 50
    assert node.count("waiting") == 0


def test_what_waits_passes_on_with_a_catch_up(node: Store) -> None:
    take(node, document_event("d", 1), local_event(3, {ORIGIN: 2}, number=4))
    with store(2) as other:
        *messages, end = catchup.beyond(node.reader, {})
        assert isinstance(end, End)
        take(other, *(one for one in messages if isinstance(one, bytes)))
        other.do(lambda ledger: catchup.finish(ledger, end))
        assert local_of(other) is None
        take(other, document_event("e", 2))
        assert local_of(other) == 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_local_document_never_shows_before_what_it_vouches_for(data: st.DataObject) -> None:
    """In the end the latest shows, in whatever order they came."""
    number = st.integers(1, 4)
    written = [
        (stamp, {ORIGIN: data.draw(number), OTHER: data.draw(number)}) for stamp in range(1, 5)
    ]
    messages = [local_event(stamp, seen, number=stamp) for stamp, seen in written]
    messages += [
        document_event(f"{origin}-{oseq}", oseq, origin=origin)
        for origin in (ORIGIN, OTHER) for oseq in range(1, 5)
    ]  # fmt: skip
    with store() as one:
        for message in data.draw(st.permutations(messages)):
            take(one, message)
            shown = local_of(one)
            assert shown is None or covers(one.ledger.vector, dict(written)[shown])
        assert local_of(one) == 4
        assert one.count("waiting") == 0


# Unsound events


def test_a_document_of_which_nothing_is_left_completes_its_write(node: Store) -> None:
    """Its database was dropped and freed before the event was made."""
    take(node, document_event("d", 1))
    for doc_id, oseq in (("d", 2), ("e", 3)):
        gone = events.DocumentState(doc_id, merge.NOTHING, ())
        assert take(node, event(events.DOCUMENT, gone, oseq)) == 0
    assert node.ledger.vector[ORIGIN] == 3
    assert node.rows("SELECT id, flags FROM doc") == [("d", 0)]


def test_an_unsound_event_is_kept_whole_with_its_reason(node: Store) -> None:
    good = events.decode(document_event("d", 1))
    bad = events.encode(msgspec.structs.replace(good, payload=good.payload[:-1]))
    assert take(node, bad, document_event("e", 2)) == 1
    assert node.rows("SELECT event FROM hole") == [(bad,)]
    assert "damaged document event" in node.rows("SELECT reason FROM hole")[0][0]
    assert ORIGIN not in {origin for origin, oseq in node.ledger.vector.items() if oseq}
    assert node.count("doc") == 1
    take(node, document_event("d", 1))
    assert node.ledger.vector[ORIGIN] == 2
    # It is no hole any more: what it said is contained.
    assert node.do(lambda ledger: arrivals.retry_holes(ledger, NOW_MS)) == 0


def test_many_holes_are_tried_again_a_page_at_a_time(node: Store) -> None:
    strange = [
        msgspec.msgpack.encode([2, number]) for number in range(2 * arrivals.HOLES_A_PAGE + 3)
    ]
    assert take(node, *strange) == len(strange)
    for _ in range(2):
        left = node.do(lambda ledger: arrivals.retry_holes(ledger, NOW_MS))
        assert left == node.count("hole") == len(strange)
    assert sorted(node.rows("SELECT event FROM hole")) == sorted((one,) for one in strange)


def test_nobody_else_speaks_for_this_nodes_origin(node: Store) -> None:
    node.create(NAME)
    origin = node.ledger.origin
    assert origin is not None
    assert take(node, document_event("d", 2, origin=origin)) == 1
    node.do(lambda ledger: catchup.finish(ledger, End({origin: 9}, {origin: "m1"})))
    assert node.ledger.vector == {origin: 1}


def test_a_catch_up_names_slots_that_fit_into_a_header(node: Store) -> None:
    end = End({ORIGIN: 1, OTHER: 1, 9: 1}, {ORIGIN: "m2", OTHER: "m\r\n"})
    node.do(lambda ledger: catchup.finish(ledger, end))
    found = dict(node.rows("SELECT origin, slot FROM origin"))
    assert found == {ORIGIN: "m2", OTHER: "", 9: ""}


def test_a_clock_that_is_far_ahead_is_applied_and_raises_an_alarm(node: Store) -> None:
    bound = node.clock.ms + arrivals.DRIFT_MS_MAX
    take(node, document_event("d", 1, stamp=bound << COUNTER_BITS))
    assert node.ledger.alarms.hlc_drift_events == 0
    for oseq, more in ((2, 7000), (3, 1000)):
        take(node, document_event(str(oseq), oseq, stamp=(bound + more) << COUNTER_BITS))
    alarms = node.ledger.alarms
    assert (alarms.hlc_drift_events, alarms.hlc_drift_ms_max) == (2, arrivals.DRIFT_MS_MAX + 7000)
    take(node, local_event((bound + 9000) << COUNTER_BITS, {}))
    assert alarms.hlc_drift_ms_max == arrivals.DRIFT_MS_MAX + 9000
    assert node.count("doc") == 3


# Speed without a difference


def test_what_is_contained_is_not_opened_again(node: Store) -> None:
    one = document_event("d", 1)
    take(node, one)
    envelope = events.decode(one)
    empty = events.encode(msgspec.structs.replace(envelope, payload=b""))
    assert take(node, empty) == 0
    ahead = events.encode(msgspec.structs.replace(envelope, payload=b"", mark=2))
    assert take(node, ahead) == 1


TABLES = {
    "doc": "place, db, id, flags, rev, body, tree",
    "body": "db, id, rev, digest, leaf, deleted, body, attachments",
    "database": "num, name, generation, dropped, seq, purge_seq, docs, tombstones, body_bytes,"
    " old_bytes, digest",
    "blob_use": "*",
    "origin": "origin, slot, contained, reached",
}


def contents(node: Store) -> dict[str, list[Any]]:
    return {
        table: node.rows(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3")
        for table, columns in TABLES.items()
    }


def scribble(source: Store, rng: random.Random) -> None:
    """Something that a client might write."""
    num = row_of(source).num
    doc_id = rng.choice("abcdef")
    shown = documents.read_row(source.reader, num, doc_id).document.shown()
    if shown and rng.random() < 0.1:
        source.do(Purge(NAME, 1, {doc_id: [shown[0].rev]}))
    elif rng.random() < 0.1:
        value = b"%d" % rng.randint(1, 3)
        source.do(SetRegister(NAME, 1, registers.OPTION, "revs_limit", value, 1))
    else:
        parent = rng.choice(shown).rev if shown else None
        deleted = bool(shown) and rng.random() < 0.2
        source.write(NAME, edit(doc_id, parent, {"v": rng.randrange(4)}, deleted=deleted))


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_a_batch_is_as_one_event_after_the_other(rng: random.Random, writes: int) -> None:
    """Two masters write and hear of each other; a third takes it all, in two ways."""
    with store(1) as one, store(2) as other, store(3) as singly, store(3) as batched:
        messages: list[bytes] = []
        sources = [one, other]
        for source in sources:
            source.create(NAME)
        for _ in range(writes):
            source = rng.choice(sources)
            scribble(source, rng)
            messages.append(published(source)[-1])
            if rng.random() < 0.3:
                take(source, *rng.choices(messages, k=3))
        for message in messages:
            take(singly, message)
        while messages:
            size = rng.randint(1, 20)
            take(batched, *messages[:size])
            del messages[:size]
        assert contents(batched) == contents(singly)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_where_a_leaf_follows_a_leaf_nothing_is_left_to_merge(rng: random.Random) -> None:
    states = History(rng).run(60).states
    for _ in range(200):
        here, there = rng.choice(states), rng.choice(states)
        if arrivals._follows(here, there):
            context = join(here.context, there.context)
            assert merge.merge(here, there) == Document(there.leaves, context)
