"""`divandb verify` and what goes on in the background, over processes whose files are changed."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest

from tests.running import Cluster, clustered, divandb
from tests.system.load import load
from tests.system.wire import faults

FOUND_S_MAX = 30.0
DOCUMENTS = 300


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with a replica each, and a database; every test leaves them alike."""
    with clustered(tmp_path_factory.mktemp("verify"), masters=2, replicas=1) as started:
        assert started.request("PUT", "/x")[0] == 201
        docs = [{"_id": f"d{number:03}", "n": number} for number in range(DOCUMENTS)]
        assert started.request("POST", "/x/_bulk_docs", {"docs": docs})[0] == 201
        started.await_converged()
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


def verified(own: Cluster, *options: str) -> Any:
    return divandb("verify", "--data", str(own.data), *options)


def change(own: Cluster, node: str, *statements: str) -> None:
    """Change a node's file while everything is down, and start again."""
    assert own.stop() == 0
    with closing(sqlite3.connect(own.data / node / "node.sqlite")) as connection:
        (num,) = connection.execute("SELECT num FROM database WHERE name = 'x'").fetchone()
        for sql in statements:
            assert connection.execute(f"{sql} AND db = {num}").rowcount == 1
        connection.commit()
    own.start()


def made(own: Cluster) -> str:
    """A new database, for writers who count on finding it empty."""
    name = f"db-{uuid4().hex}"
    assert own.request("PUT", f"/{name}")[0] == 201
    return name


def metrics(own: Cluster, node: str) -> dict[str, float]:
    _, _, text = own.exchange("GET", "/_node/_local/_prometheus", node=node)
    lines = [line.split() for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


OTHER_BODY = """
UPDATE doc SET body = CAST(replace(CAST(body AS TEXT), '"n":7', '"n":8') AS BLOB)
WHERE id = 'd007'
"""


def test_a_sound_cluster_is_identical(own: Cluster) -> None:
    done = verified(own)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["_replicator", "_users", "x"]
    assert all("identical on 4 nodes at vector " in line for line in lines)
    environment = {"DIVANDB_ADMIN": own.credentials}
    done = divandb("verify", "--url", own.url, "--json", **environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found["nodes"]) == sorted(own.nodes)
    rows = {report["name"]: report for report in found["reports"]}
    assert set(rows) == set(own.nodes)
    status, refused = own.request("GET", "/_divan/verify", admin=False)
    assert (status, refused["error"]) == (401, "unauthorized")


def test_a_busy_cluster_is_identical_but_for_what_is_just_being_written(own: Cluster) -> None:
    """Without a moment at which two nodes are at the same vector."""
    db = made(own)
    with load(own, db, ["m1", "m2", "m1-r1", "m2-r1"]) as busy:
        done = verified(own)
        assert done.returncode == 0, done.stdout
        assert f"{db}: identical on 4 nodes" in done.stdout
    own.await_converged()
    busy.check()


def test_rows_that_were_changed_by_hand_are_named_and_mended(own: Cluster) -> None:
    right = own.request("GET", "/x/d007", node="m1")[1]
    change(own, "m2-r1", OTHER_BODY, "DELETE FROM doc WHERE id = 'd008'")
    assert own.request("GET", "/x/d007", node="m2-r1")[1]["n"] == 8
    done = verified(own)
    assert done.returncode == 1, done.stdout
    found = done.stdout
    assert "x: 2 documents differ\n" in found
    assert "  d007 at m2-r1: a body is not what its digest says" in found
    assert "  d008 at m2-r1: mended from m" in found
    own.await_true(lambda: own.request("GET", "/x/d007", node="m2-r1")[1] == right, FOUND_S_MAX)
    own.await_converged()
    done = verified(own)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("node", ["m1-r1", "m2"])
def test_nobody_has_to_ask(own: Cluster, node: str) -> None:
    """In the background, while clients write."""
    own.environment["DIVANDB_VERIFY_EVERY_S"] = "1"
    right = own.request("GET", "/x/d007", node="m1")[1]
    change(own, node, OTHER_BODY, "DELETE FROM doc WHERE id = 'd009'")
    with load(own, made(own), ["m1", "m2"]) as busy:
        own.await_true(
            lambda: metrics(own, node)["divandb_verify_mended_documents_total"] == 2, FOUND_S_MAX
        )
    own.await_converged()
    busy.check()
    assert own.request("GET", "/x/d007", node=node)[1] == right
    for name in own.nodes:
        said = metrics(own, name)
        assert said["divandb_verify_divergent_documents_total"] == (2 if name == node else 0)
        assert said["divandb_verify_open_documents"] == 0
    for name in own.nodes:
        own.await_true(
            lambda name=name: metrics(own, name)["divandb_verify_last_proof_age_seconds"] < 5,
            FOUND_S_MAX,
        )
    assert "not what it should be db=x id=d007" in own.log.read_text()


def test_a_node_that_is_down_is_not_proved(own: Cluster) -> None:
    with own.frozen("m2-r1"):
        began = time.monotonic()
        done = verified(own)
        assert time.monotonic() - began < 30
    assert done.returncode == 1
    assert "x: identical on 3 of 4 nodes; not known of m2-r1" in done.stdout
    assert "m2-r1 is silent" in done.stdout
