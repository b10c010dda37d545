"""Silent divergence: what was changed or lost behind a node's back is found and mended.

Nodes compare themselves every second here, and read all rows every five; the bounds are in
simulated seconds.
"""

import asyncio
import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb import document
from divandb.cluster import proving
from divandb.config import Limits
from divandb.merge import Document
from divandb.store import databases, digests
from tests.sim import chaos
from tests.sim.checkers import contents
from tests.sim.cluster import Cluster
from tests.sim.node import Node
from tests.sim.test_random import masters_alone, whole_groups

Play = Callable[..., Cluster]
LIMITS = Limits(verify_every_s=1, verify_rows_every_s=5)
FOUND_S_MAX = 20.0
"""From a damaged node's start until it is as all others are, whatever the damage."""
NAME = "x"
QUIET_SEEDS = range(4)

OTHER_BODY = """
UPDATE doc SET body = CAST(replace(CAST(body AS TEXT), '"v":7', '"v":8') AS BLOB) WHERE id = 'd07'
"""
OTHER_TREE = """
UPDATE doc SET tree = (SELECT tree FROM doc WHERE id = 'd10') WHERE id = 'd11'
"""
DAMAGES = {
    "a body is another": [OTHER_BODY],
    "a row is lost": ["DELETE FROM doc WHERE id = 'd08'"],
    "a tombstone is lost": ["DELETE FROM doc WHERE id = 'd39'"],
    "a tree cannot be read": ["UPDATE doc SET tree = x'00' WHERE id = 'd09'"],
    "a tree is that of another document": [OTHER_TREE],
    "a flag has flipped": ["UPDATE doc SET flags = 1 WHERE id = 'd12'"],
    "the bodies of leaves are lost": ["DELETE FROM body WHERE leaf = 1"],
    "all rows are lost": ["DELETE FROM doc", "DELETE FROM body"],
    "a register is lost": ["DELETE FROM register WHERE kind = 'local'"],
    "a register is of an earlier time": [
        "UPDATE register SET stamp = stamp - 1, value = NULL WHERE kind = 'local'"
    ],
    "a digest is another": ["UPDATE database SET digest = zeroblob(16)"],
    "the database is lost": ["DELETE FROM database"],
}


async def filled(c: Cluster) -> None:
    """A database with some documents, conflicts, a deletion and a register, on all nodes."""
    m1, m2, *_ = await c.with_database(NAME)
    for number in range(40):
        await m1.put(NAME, f"d{number:02}", number)
    await c.settled()
    for number in range(5):
        parent = m1.leaves(NAME, f"d{number:02}")[0]
        await asyncio.gather(
            m1.put(NAME, f"d{number:02}", "one", parent=parent),
            m2.put(NAME, f"d{number:02}", "other", parent=parent),
        )
    await m1.put(NAME, "d39", 0, parent=m1.leaves(NAME, "d39")[0], deleted=True)
    await m1.set_register(NAME, "local", "_local/k", b'{"_id":"_local/k","_rev":"0-1"}')
    await c.settled()


def by_hand(node: Node, *statements: str) -> None:
    """Change the file of a node that is down."""
    with closing(sqlite3.connect(node.disk.path)) as connection:
        for sql in statements:
            assert connection.execute(sql).rowcount, sql
        connection.commit()


def damaged(c: Cluster, node: Node, *statements: str) -> None:
    """Kill a node, change its file and start it again; nobody checks what it holds meanwhile."""
    node.crash()
    c.checkers.clear()
    by_hand(node, *statements)
    c.start(node)


def is_as(node: Node, other: Node) -> bool:
    """Does it hold what another holds, with the counters and digests of that?"""
    mine = node.ledger.register.get(NAME)
    theirs = other.ledger.register[NAME]
    if mine is None:
        return False
    kept = databases.load(node.connection, mine.num)
    assert kept is not None
    counts = (kept.docs, kept.tombstones, kept.body_bytes)
    try:
        return (
            contents(node) == contents(other)
            and _shown(node) == _shown(other)
            and kept.digest == digests.recomputed(node.connection, kept) == theirs.digest
            and counts == (theirs.docs, theirs.tombstones, theirs.body_bytes)
        )
    except Exception:  # what is damaged cannot be read
        return False


def _shown(node: Node) -> Any:
    """What rows say beside their trees."""
    return node.connection.execute("SELECT id, flags, rev FROM doc ORDER BY id").fetchall()


async def heals(c: Cluster, node: Node) -> None:
    """In time it is as all others are, which did not change."""
    other = next(one for one in c.masters if one is not node)
    assert not is_as(node, other)
    before = contents(other)
    await c.until(lambda: is_as(node, other), FOUND_S_MAX)
    assert all(contents(one) == before for one in c.nodes)
    await c.until(lambda: not node.findings.open, FOUND_S_MAX)


@pytest.mark.parametrize("name", ["m1-r1", "m2"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_found_and_mended(play: Play, damage: str, name: str) -> None:
    async def body(c: Cluster) -> None:
        await filled(c)
        (node,) = [one for one in c.nodes if one.name == name]
        damaged(c, node, *DAMAGES[damage])
        await heals(c, node)
        totals = node.findings.totals
        assert totals.divergent_documents == totals.mended_documents
        # Registers are part of every catch-up, also of that which a start begins with.
        assert totals.divergent_documents or totals.corrected_digests
        assert all(one.findings.totals.divergent_documents == 0 for one in c.nodes if one != node)

    play(body, masters=2, replicas=1, limits=LIMITS)


@pytest.mark.parametrize("name", ["m1-r1", "m1"])
def test_a_disk_that_was_put_back_but_for_its_vector(play: Play, name: str) -> None:
    """Rows and counters are of an earlier time, and the vector says that all is there."""

    async def body(c: Cluster) -> None:
        (node,) = [one for one in c.nodes if one.name == name]
        await c.with_database(NAME)
        await c.masters[1].put(NAME, "kept", 1)
        await c.settled()
        node.crash()
        earlier = shutil.copytree(node.folder, node.folder.with_name("earlier"))
        c.start(node)
        await filled_again(c)
        node.crash()
        c.checkers.clear()
        _put_back(node, earlier)
        c.start(node)
        await heals(c, node)

    play(body, masters=2, replicas=1, limits=LIMITS)


async def filled_again(c: Cluster) -> None:
    m2 = c.masters[1]
    for number in range(30):
        await m2.put(NAME, f"e{number}", number)
    await m2.put(NAME, "kept", 2, parent=m2.leaves(NAME, "kept")[0])
    await c.settled()


def _put_back(node: Node, earlier: Path) -> None:
    with closing(sqlite3.connect(node.disk.path)) as connection:
        origins = connection.execute("SELECT * FROM origin").fetchall()
        positions = connection.execute("SELECT * FROM position").fetchall()
    node.lose_file()
    for path in earlier.iterdir():
        shutil.copy(path, node.folder)
    with closing(sqlite3.connect(node.disk.path)) as connection:
        connection.executemany("INSERT OR REPLACE INTO origin VALUES (?,?,?,?,?)", origins)
        connection.executemany("INSERT OR REPLACE INTO position VALUES (?,?,?,?,?)", positions)
        connection.commit()


def test_a_replica_that_alone_has_something_gives_it_to_its_master(play: Play) -> None:
    """The only master has lost rows: it finds them at its replicas."""

    async def body(c: Cluster) -> None:
        (m1,) = await c.with_database(NAME)
        for number in range(10):
            await m1.put(NAME, f"d{number}", number)
        await c.settled()
        damaged(c, m1, "DELETE FROM doc WHERE id IN ('d3', 'd4')")
        await c.until(lambda: is_as(m1, c.replicas[0]), FOUND_S_MAX)
        assert m1.findings.totals.mended_documents == 2

    play(body, masters=1, replicas=2, limits=LIMITS)


def test_damage_is_found_while_clients_write(play: Play) -> None:
    """No two nodes are ever at the same vector, and the damaged one is found all the same."""

    async def body(c: Cluster) -> None:
        await filled(c)
        busy = True

        async def write(master: Node, prefix: str) -> None:
            number = 0
            while busy:
                await master.put(NAME, f"{prefix}{number}", number)
                number += 1
                await asyncio.sleep(0.003)

        c.faults.delay_s = 0.05
        writing = [asyncio.ensure_future(write(m, m.name)) for m in c.masters]
        (node,) = [one for one in c.nodes if one.name == "m2-r1"]
        damaged(c, node, OTHER_BODY, "DELETE FROM doc WHERE id = 'd08'")
        await c.until(lambda: node.findings.totals.mended_documents == 2, FOUND_S_MAX)
        proved = [one.findings.totals.comparisons for one in c.nodes]
        await c.passes(3)
        assert all(one.verifier.proof_age_s < 4 for one in c.nodes), proved
        busy = False
        await asyncio.gather(*writing)
        assert len({frozenset(one.vector.items()) for one in c.nodes}) > 1
        await c.settled()
        assert is_as(node, c.masters[0])
        assert node.findings.totals.mended_documents == 2
        assert node.findings.totals.divergent_documents == 2
        assert sum(one.findings.totals.divergent_documents for one in c.nodes if one != node) == 0

    play(body, masters=2, replicas=1, limits=LIMITS)


def test_what_nothing_can_decide_is_left_alone_and_said(play: Play) -> None:
    """A row and its body were changed in step: one of two nodes is wrong, and nobody knows which.

    It is counted once, at each of the two, and neither changes.
    """

    async def body(c: Cluster) -> None:
        m1, m2, *_ = await c.with_database(NAME)
        await m1.put(NAME, "d", 1)
        await c.settled()
        right = m1.row(NAME, "d")
        m2.crash()
        c.checkers.clear()
        _forged(m2)
        c.start(m2)
        await c.until(lambda: m1.findings.open == m2.findings.open == 1, FOUND_S_MAX)
        wrong = m2.row(NAME, "d")
        asked = sum(one.findings.count for one in c.nodes)
        await c.passes(20)
        assert (m1.row(NAME, "d"), m2.row(NAME, "d")) == (right, wrong)
        assert sum(one.findings.count for one in c.nodes) == asked
        assert m2.verifier.status()["examples"] == [
            {"database": NAME, "id": "d", "what": "differs from m1"}
        ]
        assert m1.findings.totals.mended_documents == 0
        assert m1.verifier.proof_age_s > 20

    play(body, masters=2, replicas=0, limits=LIMITS)


def test_what_nobody_has_in_order_stays_and_is_told_every_time(play: Play) -> None:
    """A damaged row whose other copies are out of reach; its digest is that of the right one."""

    async def body(c: Cluster) -> None:
        m1, m2, *_ = await c.with_database(NAME)
        for number in range(9):
            await m1.put(NAME, f"d{number:02}", number)
        await c.settled()
        m2.crash()
        damaged(c, m1, OTHER_BODY)
        await c.until(lambda: m1.findings.open == 1, FOUND_S_MAX)
        for step in ("rows", "nodes", "rows"):
            await m1.process.do(_begun(m1, step))
            await c.until(lambda: not m1.verifier.report()["running"], FOUND_S_MAX)
            (told,) = m1.verifier.report()["open"]
            assert (told["database"], told["id"]) == (NAME, "d07")
        assert m1.findings.totals.divergent_documents == 1
        c.start(m2)
        await c.until(lambda: m1.findings.open == 0, FOUND_S_MAX)
        assert is_as(m1, m2)
        assert m1.findings.totals.mended_documents == 1

    play(body, masters=2, replicas=0, limits=LIMITS)


async def _begun(node: Node, step: str) -> int:
    return node.verifier.begin(step)


def _forged(node: Node) -> None:
    """As if the same write had brought another content."""
    with closing(sqlite3.connect(node.disk.path)) as connection:
        (tree,) = connection.execute("SELECT tree FROM doc WHERE id = 'd'").fetchone()
        found = msgspec.msgpack.decode(tree, type=Document)
        packed = document.dump_members({"v": 2})
        digest = document.content_digest(packed, False, ())
        leaf = msgspec.structs.replace(found.leaves[0], digest=digest)
        body = document.body_bytes("d", leaf.rev, False, packed, ())
        forged = msgspec.msgpack.encode(Document((leaf,), found.context))
        connection.execute("UPDATE doc SET body = ?, tree = ? WHERE id = 'd'", (body, forged))
        connection.commit()


@pytest.mark.parametrize("seed", QUIET_SEEDS)
@pytest.mark.parametrize("make", [masters_alone, whole_groups])
def test_where_nothing_is_damaged_nothing_is_found(play: Play, make: Any, seed: int) -> None:
    """Whatever goes wrong on the way, no comparison takes what is still to come for divergence."""
    body, shape = make(seed)
    limits = dataclasses.replace(chaos.LIMITS, verify_every_s=1, verify_rows_every_s=2)
    cluster = play(body, seed=seed, limits=limits, **shape)
    for node in cluster.nodes:
        totals = node.findings.totals
        found = (totals.divergent_documents, totals.mended_documents, totals.corrected_digests)
        assert found == (0, 0, 0), (node.name, node.log.lines)


def test_a_healthy_cluster_asks_little(play: Play) -> None:
    """One question a node and interval, and an answer of some bytes."""
    asked: list[bytes] = []

    async def body(c: Cluster) -> None:
        await filled(c)
        for node in c.nodes:
            right = node.witness.answer

            async def heard(asker: str, question: bytes, right: Any = right) -> bytes:
                asked.append(question)
                answer: bytes = await right(asker, question)
                assert len(answer) < 200
                return answer

            node.witness.answer = heard  # type: ignore[method-assign]
        await c.passes(10)
        assert len(asked) <= 11 * len(c.nodes)
        kinds = {type(proving.decode_question(question)) for question in asked}
        assert kinds == {proving.Everything}
        assert all(node.verifier.proof_age_s < 6 for node in c.nodes)

    play(body, masters=2, replicas=1, limits=LIMITS)
