"""Writers that keep a cluster busy, and the proof that nothing they were promised is lost."""

import collections
import contextlib
import dataclasses
import http.client
import itertools
import random
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tests.running import Cluster
from tests.system.wire import Answer, Wire

WRITES_PER_S = 40
"""Of one writer: enough to be in the middle of something, too few to fill two cores."""
OPEN_DOCS_MAX = 20
GET_DOCS = 500
JOIN_S_MAX = 40.0
RETRYABLE = frozenset({503})


@dataclasses.dataclass
class Known:
    """What a writer knows of one of its documents."""

    acknowledged: list[str] = dataclasses.field(default_factory=list)
    """Revisions in the order in which they were answered."""
    made_at: float | None = None
    """When its first revision was answered, on the monotonic clock."""
    unsure: bool = False
    """Whether a write of it got no answer, or a 503: it may have happened."""


class Writer(threading.Thread):
    """Creates and changes documents of its own through one node, and notes what was answered.

    As a client should, it sends back the session token that it was last given.
    """

    def __init__(self, cluster: Cluster, db: str, node: str | None, name: str) -> None:
        super().__init__(name=f"writer {name}", daemon=True)
        self._cluster = cluster
        self._db = db
        self._node = node
        self._random = random.Random(name)
        self._done = threading.Event()
        self._prefix = name
        self._wire = self._connected()
        self._token: dict[str, str] = {}
        self.docs: dict[str, Known] = {}
        self.refusals: collections.Counter[int] = collections.Counter()
        """Answers that were no success, by status; 0 for no answer at all."""
        self.answered_at: list[float] = []
        """When writes were acknowledged, on the monotonic clock."""
        self.surprise: BaseException | None = None

    def _connected(self) -> Wire:
        return connected(self._cluster, self._node)

    def run(self) -> None:
        """Write until ``finish``."""
        try:
            with self._cluster.beside(self._node):
                self._go_on()
        except BaseException as surprise:
            self.surprise = surprise
        finally:
            self._wire.close()

    def _go_on(self) -> None:
        due = time.monotonic()
        while not self._done.is_set():
            self._write()
            due = max(due + 1 / WRITES_PER_S, time.monotonic() - 0.1)
            self._done.wait(max(due - time.monotonic(), 0))

    def finish(self) -> None:
        """Write no more."""
        self._done.set()

    def _write(self) -> None:
        doc_id = self._choice()
        known = self.docs.setdefault(doc_id, Known())
        body: dict[str, Any] = {"n": len(known.acknowledged), "filling": "x" * 200}
        if known.acknowledged:
            body["_rev"] = known.acknowledged[-1]
        answer = self._put(doc_id, body)
        if answer is not None and answer.status == 201:
            known.acknowledged.append(answer.json["rev"])
            now = time.monotonic()
            self.answered_at.append(now)
            known.made_at = known.made_at or now
            return
        # Nobody knows whether it happened: such a document is left alone from here on.
        known.unsure = True
        self.refusals[answer.status if answer is not None else 0] += 1
        time.sleep(0.05)

    def _choice(self) -> str:
        recent = list(self.docs)[-OPEN_DOCS_MAX:]
        known = [each for each in recent if not self.docs[each].unsure]
        if known and self._random.random() < 0.6:
            return self._random.choice(known)
        return f"{self._prefix}-{len(self.docs):05}"

    def _put(self, doc_id: str, body: dict[str, Any]) -> Answer | None:
        try:
            path = f"/{self._db}/{doc_id}"
            self._wire.send(self._wire.request("PUT", path, body, self._token))
            answer = self._wire.answer("PUT")
            if answer.headers["divan-session"] is not None:
                self._token = {"divan-session": answer.headers["divan-session"]}
            return answer
        except (OSError, http.client.HTTPException):
            self._wire.close()
            self._wire = self._connected()
            return None


class Load:
    """Writers at several nodes."""

    def __init__(self, cluster: Cluster, db: str, nodes: Iterable[str | None]) -> None:
        self._cluster = cluster
        self._db = db
        self.writers = [
            Writer(cluster, db, node, f"{node or 'shared'}-{number}")
            for number, node in enumerate(nodes)
        ]

    @property
    def docs(self) -> dict[str, Known]:
        """All documents that were written, or may have been."""
        return {doc_id: each for writer in self.writers for doc_id, each in writer.docs.items()}

    @property
    def acknowledged(self) -> int:
        """Writes so far."""
        return sum(len(writer.answered_at) for writer in self.writers)

    def finish(self) -> None:
        """Let the writers end."""
        for writer in self.writers:
            writer.finish()
        for writer in self.writers:
            if writer.ident is not None:
                writer.join(JOIN_S_MAX)

    def check(self) -> None:
        """Nothing unexpected was answered, and nothing that was acknowledged is missing anywhere.

        For a cluster that has converged.
        """
        assert [writer.surprise for writer in self.writers] == [None] * len(self.writers)
        assert not any(writer.is_alive() for writer in self.writers)
        refusals = sum((writer.refusals for writer in self.writers), collections.Counter())
        assert refusals.keys() <= RETRYABLE | {0}, refusals
        docs = self.docs
        assert any(known.acknowledged for known in docs.values())
        for node in self._cluster.nodes:
            trees = trees_of(self._cluster, node, self._db, docs)
            for doc_id, known in docs.items():
                found = {rev for leaf in trees[doc_id] for rev in ancestry(leaf)}
                lost = [rev for rev in known.acknowledged if rev not in found]
                assert not lost, f"{doc_id} at {node} lacks {lost}"
                if not known.unsure:
                    (leaf,) = trees[doc_id]
                    assert leaf["_rev"] == known.acknowledged[-1], (node, leaf)

    def longest_silence_s(self, since: float, until: float) -> float:
        """The longest time between two moments in which no write was acknowledged."""
        inside = sorted(at for w in self.writers for at in w.answered_at if since < at < until)
        moments = [since, *inside, until]
        return max(after - before for before, after in itertools.pairwise(moments))


@contextlib.contextmanager
def load(cluster: Cluster, db: str, nodes: Iterable[str | None]) -> Iterator[Load]:
    """Write to ``db`` at these nodes (None: at the clients' port) for as long as one is inside."""
    status, answer = cluster.request("PUT", f"/{db}")
    assert status in (201, 412), answer
    busy = Load(cluster, db, nodes)
    try:
        for writer in busy.writers:
            writer.start()
        cluster.await_true(lambda: all(writer.answered_at for writer in busy.writers))
        yield busy
    finally:
        busy.finish()


def connected(cluster: Cluster, node: str | None) -> Wire:
    """A wire to a node, or to the clients' port."""
    host, port = cluster.address_of(node)
    return Wire(port, cluster.credentials, host=host)


def trees_of(
    cluster: Cluster, node: str, db: str, doc_ids: Iterable[str]
) -> dict[str, list[dict[str, Any]]]:
    """All leaves of these documents with their ancestry, as ``node`` has them."""
    found: dict[str, list[dict[str, Any]]] = {}
    ids = list(doc_ids)
    with contextlib.closing(connected(cluster, node)) as wire:
        for start in range(0, len(ids), GET_DOCS):
            asked = {"docs": [{"id": doc_id} for doc_id in ids[start : start + GET_DOCS]]}
            answer = wire.ask("POST", f"/{db}/_bulk_get?revs=true", asked)
            assert answer.status == 200, answer
            for row in answer.json["results"]:
                found[row["id"]] = [each["ok"] for each in row["docs"] if "ok" in each]
    return found


def ancestry(leaf: dict[str, Any]) -> list[str]:
    """The revisions of a leaf that was read with ``revs=true``, the leaf first."""
    start = leaf["_revisions"]["start"]
    return [f"{start - index}-{each}" for index, each in enumerate(leaf["_revisions"]["ids"])]
