"""The store against a model made of dicts: whatever is done, both say the same."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from divandb import document, merge, revtree
from divandb.closings import NONE
from divandb.commands import Graft, Purge, SetRegister, WriteDocuments
from divandb.cursor import Cursor
from divandb.errors import Conflict, FileExists, NotFound
from divandb.merge import NOTHING
from divandb.revtree import Attachment, hash_bytes, parse_rev
from divandb.store import blobs, changes, digests, documents, ledger, listing, registers
from divandb.store.checkpoints import WalGauge
from divandb.store.databases import Database
from divandb.store.ledger import Ledger
from divandb.store.listing import Span
from divandb.store.upkeep import Upkeep
from divandb.vector import covers
from tests.stores import Store, edit, run_steps
from tests.unit.test_upkeep import attached

NAMES = ["a", "b"]
IDS = ["\x00n", "b", "🦆", "_design/x", 'q"\\', "a", "é", "zz"]
HASHES = ["x", "y", "ffff"]
DATA = b"att"
MARK_CHANGES_MAX = 3
PENDING_SCAN_MAX = 4


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    """Marks and scans that a short history reaches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "MARK_CHANGES_MAX", MARK_CHANGES_MAX)
        patch.setattr(changes, "PENDING_SCAN_MAX", PENDING_SCAN_MAX)
        yield


class ModelLeaf(msgspec.Struct):
    """A leaf revision: its ancestry as revisions, and what is sent for it."""

    path: tuple[str, ...]
    deleted: bool
    digest: bytes
    body: bytes
    attachments: tuple[Attachment, ...] = ()


class ModelDoc(msgspec.Struct):
    """A document: its leaves by revision, and old bodies that are still to be read."""

    leaves: dict[str, ModelLeaf]
    old: dict[str, ModelLeaf]
    unsure: set[str]
    """Purged revisions, of which an older copy may be left."""

    def replace(self, rev: str) -> None:
        self.old[rev] = self.leaves.pop(rev)

    def add(self, rev: str, leaf: ModelLeaf) -> None:
        known = self.leaves.get(rev)
        if known is not None and len(known.path) > len(leaf.path):
            leaf = msgspec.structs.replace(leaf, path=known.path)
        self.leaves[rev] = leaf
        for other in [r for r in self.leaves if self.inside(r)]:
            self.replace(other)

    def inside(self, rev: str) -> bool:
        return any(rev in leaf.path[1:] for leaf in self.leaves.values())

    def knows(self, rev: str) -> bool:
        return any(rev in leaf.path for leaf in self.leaves.values())

    def shown(self) -> list[str]:
        def rank(rev: str) -> tuple[bool, int, bytes]:
            pos, rev_hash = parse_rev(rev)
            return (not self.leaves[rev].deleted, pos, hash_bytes(rev_hash))

        return sorted(self.leaves, key=rank, reverse=True)

    @property
    def winner(self) -> ModelLeaf | None:
        return self.leaves[self.shown()[0]] if self.leaves else None


class ModelDatabase(msgspec.Struct):
    """One generation: documents in the order in which they changed last, and registers."""

    num: int
    generation: int
    docs: dict[str, ModelDoc]
    registers: dict[tuple[str, str], bytes | None]
    dropped: bool = False

    def changed(self, doc_id: str) -> None:
        self.docs[doc_id] = self.docs.pop(doc_id)

    def visible(self) -> list[str]:
        return [doc_id for doc_id, doc in self.docs.items() if doc.leaves]

    def living(self) -> list[str]:
        return sorted(
            doc_id for doc_id, doc in self.docs.items() if doc.winner and not doc.winner.deleted
        )


class Moment(msgspec.Struct):
    """A cursor that was given out, and what has changed since."""

    num: int
    vector: dict[int, int]
    since: set[str]


# Few, so that much happens to each.
doc_ids = st.sampled_from(IDS[:2])
names = st.sampled_from(["a", "a", "a", "b"])
numbers = st.integers(0, 2)


class StoreMachine(RuleBasedStateMachine):
    """Random commands, carried out by a real store and by the model."""

    revs_limit = 1000

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder, revs_limit=self.revs_limit)
        self.opened()
        self.databases: dict[str, list[ModelDatabase]] = {name: [] for name in NAMES}
        self.moments: list[Moment] = []
        self.writes = 0
        self.numbering = self.store.identity.numbering

    def opened(self) -> None:
        self.upkeep = Upkeep(
            self.store.ledger, WalGauge(self.store.connection), self.store.clock, self.store.limits
        )

    def teardown(self) -> None:
        assert self.store.rows("PRAGMA integrity_check") == [("ok",)]
        self.store.close()
        shutil.rmtree(self.folder)

    def living(self, name: str) -> ModelDatabase | None:
        newest = self.databases[name][-1] if self.databases[name] else None
        return newest if newest is not None and not newest.dropped else None

    def doc(self, db: ModelDatabase, doc_id: str) -> ModelDoc:
        return db.docs.setdefault(doc_id, ModelDoc({}, {}, set()))

    def row(self, db: ModelDatabase) -> Database:
        return self.store.ledger.databases[db.num]

    def changed(self, db: ModelDatabase, doc_id: str) -> None:
        self.writes += 1
        db.changed(doc_id)
        for moment in self.moments:
            if moment.num == db.num:
                moment.since.add(doc_id)

    # Databases

    @initialize()
    def begin(self) -> None:
        self.create("a")

    def create(self, name: str) -> None:
        generation = len(self.databases[name]) + 1
        made = self.store.create(name, generation)
        self.databases[name].append(ModelDatabase(made.num, generation, {}, {}))
        self.writes += 1

    @rule(name=names)
    def drop(self, name: str) -> None:
        db = self.living(name)
        if db is None:
            with pytest.raises(NotFound):
                self.store.drop(name, len(self.databases[name]))
            self.create(name)
        elif name == "b" or sum(len(doc.leaves) for doc in db.docs.values()) > 4:
            self.store.drop(name, db.generation)
            db.dropped = True
            self.writes += 1

    # Documents

    @rule(
        name=names, doc_id=doc_ids, pick=numbers,
        values=st.lists(st.sampled_from([0, 0, 1]), min_size=1, max_size=3),
        deleted=st.sampled_from([False, False, True]), attached=st.booleans(),
    )  # fmt: skip
    def edit(
        self, name: str, doc_id: str, pick: int, values: list[int], deleted: bool, attached: bool
    ) -> None:
        """Edits one after the other, the last one maybe a deletion."""
        db = self.living(name)
        if db is None:
            return
        for value in values[:-1]:
            self._edit(name, db, doc_id, pick, value, False, attached)
        self._edit(name, db, doc_id, pick, values[-1], deleted, attached)

    def _edit(
        self, name: str, db: ModelDatabase, doc_id: str, pick: int, value: int, deleted: bool,
        with_blob: bool,
    ) -> None:  # fmt: skip
        doc = self.doc(db, doc_id)
        shown = doc.shown()
        parent = shown[pick % len(shown)] if shown else None
        pos = parse_rev(parent)[0] + 1 if parent else 1
        att, blob = attached("n", DATA, revpos=pos)
        atts, held = ((att,), (blob,)) if with_blob else ((), ())
        write = edit(doc_id, parent, {"v": value}, deleted=deleted, attachments=atts, blobs=held)
        rev = f"{pos}-{write.rev_hash}"
        assert self.store.write(name, write, generation=db.generation) == [rev]
        older = doc.leaves[parent].path if parent else ()
        if parent:
            doc.replace(parent)
        path = (rev, *older)[: self.revs_limit]
        doc.add(rev, ModelLeaf(path, deleted, write.digest, write.body, atts))
        self.changed(db, doc_id)

    @rule(
        name=names, doc_id=doc_ids, pick=numbers, keep=numbers,
        head=st.sampled_from(HASHES), deleted=st.booleans(),
    )  # fmt: skip
    def graft(self, name: str, doc_id: str, pick: int, keep: int, head: str, deleted: bool) -> None:
        """A revision made elsewhere, somewhere on or beside a path that is known."""
        db = self.living(name)
        if db is None:
            return
        doc = self.doc(db, doc_id)
        shown = doc.shown()
        older = doc.leaves[shown[pick % len(shown)]].path[keep:] if shown else ()
        pos = parse_rev(older[0])[0] + 1 if older else 1
        # The content follows from the revision, as it does where revisions are made.
        path = (f"{pos}-{head}", *older)
        deleted = deleted and head == "x"
        packed = orjson.dumps({"g": path[0]})
        digest = document.content_digest(packed, deleted, ())
        body = document.body_bytes(doc_id, path[0], deleted, packed, ())
        self._graft(name, db, doc_id, ModelLeaf(path, deleted, digest, body))

    @rule(name=names, doc_id=doc_ids, pick=st.integers(0, 9))
    def graft_again(self, name: str, doc_id: str, pick: int) -> None:
        """An old revision as a replicator might bring it, long after it was replaced."""
        db = self.living(name)
        old = self.doc(db, doc_id).old if db else {}
        if db is not None and old:
            rev = sorted(old)[pick % len(old)]
            self._graft(name, db, doc_id, msgspec.structs.replace(old[rev], path=(rev,)))

    def _graft(self, name: str, db: ModelDatabase, doc_id: str, leaf: ModelLeaf) -> None:
        doc = self.doc(db, doc_id)
        rev = leaf.path[0]
        hashes = tuple(parse_rev(older)[1] for older in leaf.path)
        held = (attached("n", DATA)[1],) if leaf.attachments else ()
        write = Graft(
            doc_id, parse_rev(rev)[0], hashes, leaf.deleted, leaf.digest, leaf.body,
            leaf.attachments, held,
        )  # fmt: skip
        assert self.store.write(name, write, generation=db.generation) == [rev]
        if not doc.knows(rev):
            doc.add(rev, msgspec.structs.replace(leaf, path=leaf.path[: self.revs_limit]))
            self.changed(db, doc_id)

    @rule(name=names, doc_id=doc_ids, pick=numbers, every=st.booleans())
    def purge(self, name: str, doc_id: str, pick: int, every: bool) -> None:
        db = self.living(name)
        if db is None:
            return
        doc = self.doc(db, doc_id)
        shown = doc.shown()
        revs = shown if every else shown[pick : pick + 1]
        asked = [*revs, "9-none"]
        purged = self.store.do(Purge(name, db.generation, {doc_id: asked}))
        assert purged == {doc_id: revs}
        if revs:
            for rev in revs:
                del doc.leaves[rev]
                doc.unsure.add(rev)
            if not doc.leaves:
                doc.old.clear()
                doc.unsure.clear()
            self.changed(db, doc_id)

    @rule(name=names, count=st.integers(1, 9))
    def bulk(self, name: str, count: int) -> None:
        """Several documents in one command."""
        db = self.living(name)
        if db is None:
            return
        fresh = [doc_id for doc_id in IDS if not self.doc(db, doc_id).leaves][:count]
        writes = [edit(doc_id, None, {"bulk": count}) for doc_id in fresh]
        results = self.store.write(name, *writes, generation=db.generation)
        for doc_id, write, rev in zip(fresh, writes, results, strict=True):
            assert rev == f"1-{write.rev_hash}"
            leaf = ModelLeaf((rev,), False, write.digest, write.body)
            self.doc(db, doc_id).add(rev, leaf)
            self.changed(db, doc_id)

    @rule(name=names, doc_id=doc_ids)
    def in_vain(self, name: str, doc_id: str) -> None:
        """What does not fit, and work that a fault undoes."""
        db = self.living(name)
        if db is None:
            return
        writes: list[Any] = [edit(doc_id, "7-none", {"v": 1})]
        if self.doc(db, doc_id).leaves:
            writes.append(edit(doc_id, None, {"v": 1}))
        results = self.store.write(name, *writes, generation=db.generation)
        assert all(isinstance(result, Conflict) for result in results)
        with pytest.raises(FileExists):
            self.store.create(name, db.generation)
        command = SetRegister(name, db.generation, registers.LOCAL, "f", b"f", 1)

        def work(ledger: Ledger) -> None:
            graft = Graft(doc_id, 9, ("fault",), False, b"d" * 16, b"{}")
            self.store.master.execute(WriteDocuments(name, db.generation, [graft]))
            self.store.master.execute(command)
            raise RuntimeError("fault")

        with pytest.raises(RuntimeError):
            self.store.do(work)

    # Registers

    @rule(
        name=names, key=st.sampled_from(["k", "l"]),
        value=st.none() | st.binary(max_size=3),
    )  # fmt: skip
    def set_register(self, name: str, key: str, value: bytes | None) -> None:
        db = self.living(name)
        if db is None:
            return
        command = SetRegister(name, db.generation, registers.LOCAL, key, value, 1)
        self.store.do(command)
        db.registers[registers.LOCAL, key] = value
        self.writes += 1

    # The file

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        if crash:
            self.store.crash()
        else:
            self.store.close()
        self.store.open()
        self.opened()
        assert (self.store.identity.numbering == self.numbering) is not crash
        self.numbering = self.store.identity.numbering

    @rule(compacting=st.booleans(), minutes=st.sampled_from([0, 1, 70]))
    def keep_up(self, compacting: bool, minutes: int) -> None:
        self.store.clock.ms += minutes * 60_000
        for name in NAMES:
            db = self.living(name)
            if db is not None and compacting:
                self.upkeep.request(db.num)
                for doc in db.docs.values():
                    doc.old.clear()
                    doc.unsure.clear()
        run_steps(self.store, self.upkeep.step)

    @rule(name=names)
    def remember(self, name: str) -> None:
        """A reader keeps the cursor of what it has seen."""
        db = self.living(name)
        if db is not None and len(self.moments) < 6:
            self.moments.append(Moment(db.num, dict(self.store.ledger.vector), set()))

    # What must hold after each step

    @invariant()
    def databases_agree(self) -> None:
        for name in NAMES:
            known = self.store.ledger.register.get(name)
            db = self.living(name)
            assert (known is not None and not known.dropped) == (db is not None)
            if db is not None and known is not None:
                assert (known.num, known.generation) == (db.num, db.generation)

    @invariant()
    def documents_agree(self) -> None:
        for name in NAMES:
            db = self.living(name)
            for doc_id, doc in db.docs.items() if db else ():
                assert db is not None
                self._check_document(db.num, doc_id, doc)

    def _check_document(self, num: int, doc_id: str, doc: ModelDoc) -> None:
        reader = self.store.reader
        row = documents.read_row(reader, num, doc_id)
        shown = row.document.shown()
        assert [leaf.rev for leaf in shown] == doc.shown()
        assert merge.merge(row.document, NOTHING) == row.document
        winner = documents.read_winner(reader, num, doc_id)
        if doc.winner is None:
            assert winner is None or winner[1] == documents.NOTHING_SHOWN
        else:
            conflicts = documents.CONFLICTS if len(shown) > 1 else 0
            flags = (documents.DELETED if doc.winner.deleted else 0) | conflicts
            assert winner == (doc.shown()[0], flags, doc.winner.body)
        for leaf in shown:
            model = doc.leaves[leaf.rev]
            assert tuple(leaf.revs()) == model.path
            found = documents.read_revision(reader, num, row, leaf.rev)
            assert found == documents.Revision(
                leaf.rev, model.deleted, model.body, model.attachments
            )
            for att in leaf.attachments:
                assert b"".join(blobs.read(reader, att.blob)) == DATA
            for rev in model.path[1:]:
                self._check_old(num, row, doc, rev)
        assert revtree.known_revs(shown) == {
            rev for model in doc.leaves.values() for rev in model.path
        }

    def _check_old(self, num: int, row: documents.Row, doc: ModelDoc, rev: str) -> None:
        if rev in doc.unsure:
            return
        found = documents.read_revision(self.store.reader, num, row, rev)
        known = doc.old.get(rev)
        assert (found.body if found else None) == (known.body if known else None)
        for att in found.attachments if found else ():
            assert b"".join(blobs.read(self.store.reader, att.blob)) == DATA

    @invariant()
    def counters_agree(self) -> None:
        stored = {row[0]: row for row in self.store.rows(
            "SELECT num, seq, docs, tombstones, body_bytes, old_bytes FROM database"
        )}  # fmt: skip
        for name in NAMES:
            db = self.living(name)
            if db is None:
                continue
            winners = [doc.winner for doc in db.docs.values() if doc.winner]
            old_bytes = self.store.rows(
                "SELECT coalesce(sum(length(body)), 0) FROM body WHERE db = ? AND leaf = 0", db.num
            )[0][0]
            row = self.row(db)
            assert stored[db.num] == (
                db.num,
                row.seq,
                sum(not winner.deleted for winner in winners),
                sum(winner.deleted for winner in winners),
                sum(len(winner.body) for winner in winners),
                old_bytes,
            )
            # One row for each leaf that does not win, and none for what nobody knows.
            losers = sum(max(len(doc.leaves) - 1, 0) for doc in db.docs.values())
            assert self.store.count("body", f"db = {db.num} AND leaf = 1") == losers

    @invariant()
    def digests_agree(self) -> None:
        stored = dict(self.store.rows("SELECT num, digest FROM database"))
        for num, row in self.store.ledger.databases.items():
            found = digests.recomputed(self.store.reader, row)
            assert stored[num] == row.digest == found

    @invariant()
    def listings_agree(self) -> None:
        reader = self.store.reader
        for name in NAMES:
            db = self.living(name)
            if db is None:
                continue
            living = db.living()
            for descending in (False, True):
                expected = living[::-1] if descending else living
                assert self._paged(db, descending) == expected
                three = expected[:3]
                found = listing.ids(reader, db.num, Span(), 3, descending=descending)
                assert found == three
                leapt = listing.leap(reader, db.num, Span(), 3, descending=descending)
                assert leapt == (len(three), three[-1] if three else "")
            span = Span("b", "zz", low_in=False, high_in=False)
            inside = [doc_id for doc_id in living if "b" < doc_id < "zz"]
            assert listing.ids(reader, db.num, span, 99) == inside

    def _paged(self, db: ModelDatabase, descending: bool) -> list[str]:
        span, found = Span(), []
        while True:
            page = listing.page(
                self.store.reader, db.num, span, 2, descending=descending, include_docs=True
            )
            if not page.count:
                return found
            for line in orjson.loads(b"[" + page.text + b"]"):
                winner = db.docs[line["id"]].winner
                assert winner is not None
                assert line["doc"] == orjson.loads(winner.body)
                assert line["value"] == {"rev": line["doc"]["_rev"]}
                assert line["key"] == line["id"]
                found.append(line["id"])
            assert found[-1] == page.last
            span = listing.rest_after(span, page.last, descending=descending)

    @invariant()
    def changes_agree(self) -> None:
        for name in NAMES:
            db = self.living(name)
            if db is None:
                continue
            expected = db.visible()
            rows = changes.rows(self.store.reader, self.row(db).place, self.row(db).place_end, 99)
            assert [row.id for row in rows] == expected
            assert [row.place for row in rows] == sorted({row.place for row in rows})
            self._check_lines(db, rows)
            places_of = changes.places_of(self.store.reader, db.num, [*expected, "none"])
            assert places_of == [row.place for row in rows]
            some = changes.places_in(self.store.reader, db.num, "a", "z")
            assert sorted(some) == [row.place for row in rows if "a" <= row.id < "z"]
            assert all(changes.row_at(self.store.reader, row.place) == row for row in rows)
            places = [self.row(db).place, *(row.place for row in rows)]
            for index, place in enumerate(places):
                pending = changes.pending(self.store.reader, self.row(db), place)
                exact = len(expected) - index
                near = self.row(db).seq <= PENDING_SCAN_MAX or index == 0
                assert pending == exact if near else exact <= pending <= len(expected)

    def _check_lines(self, db: ModelDatabase, rows: list[documents.Row]) -> None:
        reader, row = self.store.reader, self.row(db)
        place, found = row.place, []
        while (
            page := changes.lines(reader, place, row.place_end, 2, "-s", include_docs=True)
        ) and page.count:
            found += orjson.loads(b"[" + page.text + b"]")
            place = page.place
        assert [(line["id"], line["seq"]) for line in found] == [
            (changed.id, f"{changed.seq}-s") for changed in rows
        ]
        for line in found:
            winner = db.docs[line["id"]].winner
            assert winner is not None
            assert line["doc"] == orjson.loads(winner.body)
            assert line["changes"] == [{"rev": line["doc"]["_rev"]}]
            assert line.get("deleted", False) == winner.deleted
        conflicts = any(len(doc.leaves) > 1 for doc in db.docs.values())
        whole = changes.lines(reader, row.place, row.place_end, 99, "-s", all_leaves=True)
        assert (whole is None) == conflicts
        newest = changes.lines(reader, row.place, row.place_end, 2, "", descending=True)
        assert newest is not None
        ids = [line["id"] for line in orjson.loads(b"[" + newest.text + b"]")]
        assert ids == [changed.id for changed in rows[:-3:-1]]

    @invariant()
    def marks_are_truthful(self) -> None:
        for name in NAMES:
            db = self.living(name)
            if db is None:
                continue
            rows = self.store.rows("SELECT place, tree FROM doc WHERE db = ?", db.num)
            contexts = [
                (place & (1 << 40) - 1, msgspec.msgpack.decode(tree, type=list[Any])[1])
                for place, tree in rows
            ]
            marks = self.store.rows(
                "SELECT seq, vector FROM mark WHERE db = ? ORDER BY seq", db.num
            )
            for seq, packed in marks:
                vector = msgspec.msgpack.decode(packed)
                assert all(covers(vector, context) == (at <= seq) for at, context in contexts)
            seqs = [seq for seq, _ in marks]
            assert seqs[0] == 0
            gaps = [b - a for a, b in zip(seqs, [*seqs[1:], self.row(db).seq + 1], strict=True)]
            assert max(gaps) <= MARK_CHANGES_MAX

    @invariant()
    def readers_from_elsewhere_miss_nothing(self) -> None:
        for name in NAMES:
            db = self.living(name)
            for moment in self.moments:
                if db is None or moment.num != db.num:
                    continue
                cursor = Cursor(1, db.generation, moment.vector)
                place = changes.place_of(self.store.reader, self.row(db), cursor, lambda: NONE)
                rows = changes.rows(self.store.reader, place, self.row(db).place_end, 99)
                unseen = {row.id for row in changes.unseen(rows, moment.vector)}
                assert unseen == moment.since & set(db.visible())

    @invariant()
    def registers_agree(self) -> None:
        for name in NAMES:
            db = self.living(name)
            if db is None:
                continue
            for (kind, key), value in db.registers.items():
                assert registers.value(self.store.reader, db.num, kind, key) == value
            scanned = registers.scan(self.store.reader, db.num, registers.LOCAL)
            assert dict(scanned) == {
                key: value for (_, key), value in db.registers.items() if value is not None
            }

    @invariant()
    def every_write_has_its_outbox_row(self) -> None:
        dots = self.store.rows("SELECT origin, oseq FROM outbox ORDER BY n")
        assert len(dots) == self.writes
        heard: dict[int, int] = {}
        for origin, oseq in dots:
            assert oseq == heard.get(origin, 0) + 1
            heard[origin] = oseq
        assert heard == dict(self.store.rows("SELECT origin, contained FROM origin"))
        assert heard == self.store.ledger.vector


class ShortAncestry(StoreMachine):
    """The same where ancestry is cut at once."""

    revs_limit = 1


class MiddleAncestry(StoreMachine):
    """The same where it is cut soon."""

    revs_limit = 2


SETTINGS = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
for machine in (StoreMachine, ShortAncestry, MiddleAncestry):
    machine.TestCase.settings = SETTINGS
TestStore = StoreMachine.TestCase
TestShortAncestry = ShortAncestry.TestCase
TestMiddleAncestry = MiddleAncestry.TestCase
