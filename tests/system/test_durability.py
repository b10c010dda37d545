"""`kill -9` in the middle of 16 writers, ten times: what was acknowledged is there."""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from divandb.store.file import FILE_NAME
from tests.running import Running, running
from tests.system.wire import Answer, Wire, faults, wired

WRITERS = 16
KILLS = 10
BETWEEN_KILLS_S = (0.3, 1.2)
"""From when a node answers until it is killed: within these, at random."""
ATTACHMENT_BYTES_MAX = 3_000_000
DB = "/kept"
SEED = 20


@dataclasses.dataclass
class Doc:
    """What a writer knows of one of its documents."""

    acknowledged: list[str] = dataclasses.field(default_factory=list)
    """Revisions that were answered with success, in order."""
    deleted: bool = False
    """Whether the last of them is a deletion."""
    unsure: bool = False
    """Whether a write of it got no answer: it may have happened."""
    bodies: list[int] = dataclasses.field(default_factory=list)
    """``n`` of everything that was sent, answered or not."""


class Writer(threading.Thread):
    """Writes documents of its own and notes what was acknowledged."""

    def __init__(self, node: Running, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self._random = random.Random(SEED * 1000 + number)
        self._number = number
        self._stop_now = stop
        self._wire = Wire(node.port, node.credentials)
        self._count = 0
        self.docs: dict[str, Doc] = {}
        self.batches: list[list[str]] = []
        """Ids of each `_bulk_docs` of new documents that got no answer."""
        self.answers = 0
        self.lost = 0
        self.surprise: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stop_now.is_set():
                self._random.choices(
                    [self._create, self._update, self._remove, self._bulk, self._attach],
                    [40, 35, 10, 10, 5],
                )[0]()
        except BaseException as surprise:
            self.surprise = surprise
        finally:
            self._wire.close()

    def _new(self) -> tuple[str, Doc]:
        self._count += 1
        doc_id = f"{self._number:02}-{self._count:06}"
        self.docs[doc_id] = Doc()
        return doc_id, self.docs[doc_id]

    def _body(self, doc: Doc) -> dict[str, Any]:
        doc.bodies.append(self._random.getrandbits(48))
        return {"n": doc.bodies[-1], "filling": "x" * self._random.randrange(2000)}

    def _ask(
        self,
        docs: list[Doc],
        method: str,
        path: str,
        body: Any,
        content_type: str = "application/json",
    ) -> Answer | None:
        """An answer; None when the node died, and then nobody knows what became of ``docs``."""
        try:
            # A write is not simply sent again: a connection that was kept may have died meanwhile.
            self._wire.send(self._wire.request(method, path, body, {"content-type": content_type}))
            answer = self._wire.answer(method)
        except (OSError, http.client.HTTPException):
            self._wire.close()
            self.lost += 1
            for doc in docs:
                doc.unsure = True
            time.sleep(0.02)
            return None
        self.answers += 1
        return answer

    def _created(self, doc: Doc, answer: Answer) -> None:
        assert answer.status in (200, 201), answer
        doc.acknowledged.append(answer.json["rev"])

    def _create(self) -> None:
        doc_id, doc = self._new()
        answer = self._ask([doc], "PUT", f"{DB}/{doc_id}", self._body(doc))
        if answer is not None:
            self._created(doc, answer)

    def _own(self) -> tuple[str, Doc] | None:
        """A living document whose revision is known for sure."""
        known = [
            (doc_id, doc)
            for doc_id, doc in list(self.docs.items())[-30:]
            if doc.acknowledged and not doc.deleted and not doc.unsure
        ]
        return self._random.choice(known) if known else None

    def _update(self) -> None:
        own = self._own()
        if own is None:
            return
        doc_id, doc = own
        body = {**self._body(doc), "_rev": doc.acknowledged[-1]}
        answer = self._ask([doc], "PUT", f"{DB}/{doc_id}", body)
        if answer is not None:
            self._created(doc, answer)

    def _remove(self) -> None:
        own = self._own()
        if own is None:
            return
        doc_id, doc = own
        answer = self._ask([doc], "DELETE", f"{DB}/{doc_id}?rev={doc.acknowledged[-1]}", None)
        if answer is not None:
            self._created(doc, answer)
            doc.deleted = True

    def _bulk(self) -> None:
        new = [self._new() for _ in range(self._random.randrange(2, 30))]
        docs = [{"_id": doc_id, **self._body(doc)} for doc_id, doc in new]
        answer = self._ask([doc for _, doc in new], "POST", f"{DB}/_bulk_docs", {"docs": docs})
        if answer is None:
            self.batches.append([doc_id for doc_id, _ in new])
            return
        assert answer.status == 201, answer
        for (doc_id, doc), row in zip(new, answer.json, strict=True):
            assert row["id"] == doc_id and row["ok"], row
            doc.acknowledged.append(row["rev"])

    def _attach(self) -> None:
        own = self._own()
        if own is None:
            return
        doc_id, doc = own
        size = self._random.choice([10, 10_000, ATTACHMENT_BYTES_MAX])
        data = self._random.randbytes(size)
        path = f"{DB}/{doc_id}/data?rev={doc.acknowledged[-1]}"
        answer = self._ask([doc], "PUT", path, data, "application/x-data")
        if answer is not None:
            self._created(doc, answer)


class Reader(threading.Thread):
    """Follows `_changes` from where it was, whatever happens to the node."""

    def __init__(self, node: Running, stop: threading.Event) -> None:
        super().__init__(name="reader", daemon=True)
        self._wire = Wire(node.port, node.credentials)
        self._stop_now = stop
        self.seen: dict[str, set[str]] = {}
        self.last_seq = "0"
        self.restarts = 0
        self.surprise: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stop_now.is_set():
                self.read("feed=longpoll&timeout=200&limit=500")
        except BaseException as surprise:
            self.surprise = surprise
        finally:
            self._wire.close()

    def read(self, how: str) -> int:
        """One request; how many changes it gave."""
        path = f"{DB}/_changes?style=all_docs&since={self.last_seq}&{how}"
        try:
            self._wire.send(self._wire.request("GET", path))
            answer = self._wire.answer()
            found = answer.json
        except (OSError, ValueError, http.client.HTTPException):
            self._wire.close()
            self.restarts += 1
            time.sleep(0.02)
            return 0
        assert answer.status == 200, answer
        for row in found["results"]:
            self.seen.setdefault(row["id"], set()).update(each["rev"] for each in row["changes"])
        self.last_seq = found["last_seq"]
        return len(found["results"])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as node:
        assert node.request("PUT", DB)[0] == 201
        yield node


@pytest.mark.timeout_s(240)
def test_ten_kills_in_the_middle_of_sixteen_writers_lose_nothing(own: Running) -> None:
    chance, stop = random.Random(SEED), threading.Event()
    writers = [Writer(own, number, stop) for number in range(WRITERS)]
    reader = Reader(own, stop)
    threads: list[Writer | Reader] = [*writers, reader]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(*BETWEEN_KILLS_S))
            noted = {
                doc_id: list(doc.acknowledged)
                for writer in writers
                for doc_id, doc in list(writer.docs.items())[-20:]
            }
            own.kill_node()
            _check_known(own, {doc_id: revs for doc_id, revs in noted.items() if revs})
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert [thread.surprise for thread in threads] == [None] * len(threads)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(writer.answers for writer in writers) > 50 * KILLS
    assert sum(writer.lost for writer in writers) >= KILLS
    assert reader.restarts > 0

    docs = {doc_id: doc for writer in writers for doc_id, doc in writer.docs.items()}
    _check_all(own, docs)
    _check_batches(own, [batch for writer in writers for batch in writer.batches])
    _check_reader(own, reader, docs)
    _check_counts(own)
    assert faults(own) == ""
    assert own.stop() == 0
    assert _integrity(own.data / "m1" / FILE_NAME) == ["ok"]


def _trees(node: Running, doc_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """All leaves of these documents with their ancestry; nothing for one that is not there."""
    found: dict[str, list[dict[str, Any]]] = {}
    with wired(node) as wire:
        for start in range(0, len(doc_ids), 500):
            asked = {"docs": [{"id": doc_id} for doc_id in doc_ids[start : start + 500]]}
            answer = wire.ask("POST", f"{DB}/_bulk_get?revs=true", asked)
            assert answer.status == 200, answer
            for row in answer.json["results"]:
                found[row["id"]] = [each["ok"] for each in row["docs"] if "ok" in each]
    return found


def _revs(leaf: dict[str, Any]) -> list[str]:
    start = leaf["_revisions"]["start"]
    return [f"{start - index}-{each}" for index, each in enumerate(leaf["_revisions"]["ids"])]


def _check_known(node: Running, noted: dict[str, list[str]]) -> None:
    """Right after a restart: what had been acknowledged before the kill."""
    trees = _trees(node, list(noted))
    for doc_id, revs in noted.items():
        known = {rev for leaf in trees[doc_id] for rev in _revs(leaf)}
        assert set(revs) <= known, f"{doc_id}: lost {set(revs) - known}"


def _check_all(node: Running, docs: dict[str, Doc]) -> None:
    trees = _trees(node, list(docs))
    for doc_id, doc in docs.items():
        leaves = trees[doc_id]
        known = {rev for leaf in leaves for rev in _revs(leaf)}
        assert set(doc.acknowledged) <= known, f"{doc_id}: lost {set(doc.acknowledged) - known}"
        if not leaves:
            assert doc.unsure and not doc.acknowledged
            continue
        # Each writer writes its documents one after the other: there are no conflicts.
        (leaf,) = leaves
        if not doc.unsure:
            assert leaf["_rev"] == doc.acknowledged[-1]
            assert bool(leaf.get("_deleted")) == doc.deleted
        assert len(known) <= len(doc.acknowledged) + (1 if doc.unsure else 0)
        if not leaf.get("_deleted"):
            assert leaf["n"] in doc.bodies[-2:]
        for name in leaf.get("_attachments", {}):
            _check_attachment(node, doc_id, name, leaf["_attachments"][name])
    with wired(node) as wire:
        asked = wire.ask("GET", f"{DB}/{next(iter(docs))}?revs=true&open_revs=all")
        assert asked.status == 200


def _check_attachment(node: Running, doc_id: str, name: str, stub: dict[str, Any]) -> None:
    """Wholly there: as long as it says, with the digest that it says."""
    with wired(node) as wire:
        answer = wire.ask("GET", f"{DB}/{doc_id}/{name}")
    assert (answer.status, len(answer.body)) == (200, stub["length"])
    digest = base64.b64encode(hashlib.md5(answer.body).digest()).decode()
    assert stub["digest"] == f"md5-{digest}"


def _check_batches(node: Running, batches: list[list[str]]) -> None:
    """A `_bulk_docs` without an answer is one command: all of it is there, or nothing."""
    for batch in batches:
        trees = _trees(node, batch)
        assert len({bool(trees[doc_id]) for doc_id in batch}) == 1, batch


def _check_reader(node: Running, reader: Reader, docs: dict[str, Doc]) -> None:
    """The reader goes on to the end and has seen each document's last change at least."""
    reader._wire = Wire(node.port, node.credentials)
    while reader.read("limit=1000"):
        pass
    reader._wire.close()
    with wired(node) as wire:
        rows = wire.ask("GET", f"{DB}/_changes?style=all_docs").json["results"]
    assert len(rows) > len(docs) // 2
    for row in rows:
        revs = {each["rev"] for each in row["changes"]}
        assert revs <= reader.seen.get(row["id"], set()), f"never seen: {row}"


def _check_counts(node: Running) -> None:
    info = node.request("GET", DB)[1]
    with wired(node) as wire:
        rows = wire.ask("GET", f"{DB}/_all_docs").json
        changes = wire.ask("GET", f"{DB}/_changes").json["results"]
    assert info["doc_count"] == len(rows["rows"]) == rows["total_rows"]
    assert info["doc_del_count"] == sum(1 for row in changes if row.get("deleted"))
    assert info["doc_count"] + info["doc_del_count"] == len(changes)


def _integrity(path: Path) -> list[str]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(connection):
        return [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
