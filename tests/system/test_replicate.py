"""`_replicate` and `_replicator` on real processes: between two nodes, and on a cluster."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.running import Cluster, Running, clustered

DONE_S_MAX = 60.0
FAST = {"DIVANDB_REPLICATION_BACKOFF_MS": "200", "DIVANDB_REPLICATION_BATCH_DOCS": "20"}
PNG = bytes(range(256)) * 40

pytestmark = pytest.mark.timeout_s(240)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The node that runs replications."""
    yield from started(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Another server."""
    yield from started(tmp_path_factory.mktemp("there"))


def started(folder: Path) -> Iterator[Running]:
    running = Running(folder)
    running.environment.update(FAST)
    running.start()
    try:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            assert running.process is not None
            running.process.kill()


@pytest.fixture
def name(here: Running, there: Running) -> str:
    """A database's name: it is there, with documents in it, and not here."""
    made = f"r-{uuid4().hex}"
    assert there.request("PUT", f"/{made}")[0] == 201
    fill(there, made, 45)
    return made


def fill(running: Running, name: str, count: int, prefix: str = "doc") -> None:
    docs = [{"_id": f"{prefix}{n:03}", "n": n, "even": n % 2 == 0} for n in range(count)]
    status, rows = running.request("POST", f"/{name}/_bulk_docs", {"docs": docs})
    assert status == 201 and all("error" not in row for row in rows)


def url_of(running: Running, name: str, login: str | None = None) -> str:
    login = "admin:a%20secret" if login is None else login
    return f"http://{login}@127.0.0.1:{running.port}/{name}"


def replicate(running: Running, source: str, target: str, **members: Any) -> dict[str, Any]:
    body = {"source": source, "target": target, **members}
    status, answer = running.request("POST", "/_replicate", body, wait_s_max=DONE_S_MAX)
    assert status in (200, 202), answer
    found: dict[str, Any] = answer
    return found


def leaves(running: Running, name: str) -> dict[str, Any]:
    """All leaves of all documents, with the digests of their attachments."""
    path = f"/{name}/_changes?style=all_docs"
    found = {}
    for row in running.request("GET", path)[1]["results"]:
        revs = sorted(one["rev"] for one in row["changes"])
        docs = running.request("GET", f"/{name}/{row['id']}?open_revs={quote(json.dumps(revs))}")[1]
        atts = [
            {n: (a["digest"], a["length"]) for n, a in d["ok"].get("_attachments", {}).items()}
            for d in docs
        ]
        found[row["id"]] = (revs, row.get("deleted", False), atts)
    return found


def ids(running: Running, name: str) -> list[str]:
    status, listed = running.request("GET", f"/{name}/_all_docs")
    return [row["id"] for row in listed["rows"]] if status == 200 else []


def make_history(running: Running, name: str) -> None:
    """Conflicts, a deletion, a deleted branch, and attachments that change."""
    path = f"/{name}"
    for rev in ("a" * 32, "b" * 32):
        doc = {"_id": "torn", "_rev": f"1-{rev}", "rev": rev}
        status, _ = running.request(
            "POST", f"{path}/_bulk_docs", {"docs": [doc], "new_edits": False}
        )
        assert status == 201
    rev = running.request("GET", f"{path}/doc001")[1]["_rev"]
    assert running.request("DELETE", f"{path}/doc001?rev={rev}")[0] == 200
    png = {"content-type": "image/png"}
    status, made = running.request("PUT", f"{path}/photo/one.png", PNG, headers=png)
    assert status == 201
    status, _ = running.request(
        "PUT", f"{path}/photo/two%20%C3%BC.png?rev={made['rev']}", PNG[::-1], headers=png
    )
    assert status == 201


def state_of(running: Running, doc_id: str) -> dict[str, Any]:
    status, row = running.request("GET", f"/_scheduler/docs/_replicator/{doc_id}")
    return dict(row) if status == 200 else {"state": None}


def await_state(running: Running, doc_id: str, state: str) -> dict[str, Any]:
    """What the node said that was the first to say so: others may not have read so far yet."""
    seen: dict[str, Any] = {}

    def is_reached() -> bool:
        seen.update(state_of(running, doc_id))
        return bool(seen["state"] == state)

    running.await_true(is_reached, DONE_S_MAX)
    return seen


def test_a_pull_brings_conflicts_deletions_and_attachments(
    here: Running, there: Running, name: str
) -> None:
    make_history(there, name)
    answer = replicate(here, url_of(there, name), name, create_target=True)
    assert answer["ok"] is True and answer["replication_id_version"] == 3
    (session,) = answer["history"]
    assert session["docs_read"] == session["docs_written"] == 48
    assert session["missing_found"] == session["missing_checked"] == 48
    assert session["doc_write_failures"] == 0
    assert leaves(here, name) == leaves(there, name)
    status, _, content = here.exchange("GET", f"/{name}/photo/one.png")
    assert (status, content) == (200, PNG)


def test_a_push_takes_over_what_is_new_only(here: Running, there: Running, name: str) -> None:
    assert here.request("PUT", f"/{name}")[0] == 201
    make_history_source(here, name)
    target = url_of(there, name)
    replicate(here, name, target)
    mine, theirs = leaves(here, name), leaves(there, name)
    assert len(mine) == 4 and all(theirs[doc_id] == mine[doc_id] for doc_id in mine)
    # Nothing new: nothing is read, nothing is written.
    again = replicate(here, name, target)
    assert again["no_changes"] is True
    status, _ = here.request("PUT", f"/{name}/later", {})
    assert status == 201
    session = replicate(here, name, target)["history"][0]
    assert (session["missing_checked"], session["docs_written"]) == (1, 1)
    assert len(replicate(here, name, target)["history"]) == 2


def make_history_source(running: Running, name: str) -> None:
    fill(running, name, 3, "mine")
    png = {"content-type": "image/png"}
    assert running.request("PUT", f"/{name}/art/one.png", PNG, headers=png)[0] == 201


def test_checkpoints_are_at_both_sides_as_couchdb_writes_them(
    here: Running, there: Running, name: str
) -> None:
    answer = replicate(here, url_of(there, name), name, create_target=True)
    found = []
    for running in (here, there):
        rows = running.request("GET", f"/{name}/_local_docs?include_docs=true")[1]["rows"]
        (log,) = [row["doc"] for row in rows if "session_id" in row["doc"]]
        assert log["session_id"] == answer["session_id"]
        assert log["source_last_seq"] == answer["source_last_seq"]
        assert log["history"][0]["recorded_seq"] == answer["source_last_seq"]
        found.append(log["_id"])
    assert found[0] == found[1]


def test_what_is_filtered_stays_there(here: Running, there: Running, name: str) -> None:
    source = url_of(there, name)
    replicate(here, source, f"{name}-i", create_target=True, doc_ids=["doc003", "doc009", "none"])
    assert ids(here, f"{name}-i") == ["doc003", "doc009"]
    replicate(here, source, f"{name}-s", create_target=True, selector={"n": {"$lt": 4}})
    assert ids(here, f"{name}-s") == ["doc000", "doc001", "doc002", "doc003"]
    replicate(here, source, f"{name}-d", create_target=True, filter="_design")
    assert ids(here, f"{name}-d") == []


def test_a_filter_function_of_the_source_chooses(here: Running, there: Running, name: str) -> None:
    code = "function (doc, req) { return doc.n >= Number(req.query.least); }"
    assert there.request("PUT", f"/{name}/_design/d", {"filters": {"f": code}})[0] == 201
    source = url_of(there, name)
    asked = {"filter": "d/f", "query_params": {"least": "43"}}
    replicate(here, source, name, create_target=True, **asked)
    assert ids(here, name) == ["doc043", "doc044"]


def test_since_seq_leaves_out_what_was_before(here: Running, there: Running, name: str) -> None:
    since = there.request("GET", f"/{name}")[1]["update_seq"]
    fill(there, name, 2, "new")
    replicate(here, url_of(there, name), name, create_target=True, since_seq=since)
    assert ids(here, name) == ["new000", "new001"]


def test_without_checkpoints_nothing_is_left_behind(
    here: Running, there: Running, name: str
) -> None:
    source = url_of(there, name)
    replicate(here, source, name, create_target=True, use_checkpoints=False)
    assert len(ids(here, name)) == 45
    assert there.request("GET", f"/{name}/_local_docs")[1]["rows"] == []


def test_a_continuous_one_follows_until_it_is_cancelled(
    here: Running, there: Running, name: str
) -> None:
    asked = {"source": url_of(there, name), "target": name, "continuous": True}
    asked["create_target"] = True
    job_id = replicate(here, **asked)["_local_id"]
    assert job_id.endswith("+continuous+create_target")
    here.await_true(lambda: len(ids(here, name)) == 45, DONE_S_MAX)
    fill(there, name, 3, "more")
    here.await_true(lambda: len(ids(here, name)) == 48, DONE_S_MAX)
    status, row = here.request("GET", f"/_scheduler/jobs/{job_id}")
    assert status == 200 and "secret" not in json.dumps(row)
    assert row["info"]["docs_written"] == 48 and row["history"][0]["type"] == "started"
    (task,) = [t for t in here.request("GET", "/_active_tasks")[1] if t["type"] == "replication"]
    assert task["replication_id"] == job_id and "secret" not in json.dumps(task)
    cancelled = replicate(here, **asked, cancel=True)
    assert cancelled == {"ok": True, "_local_id": job_id}
    assert here.request("GET", f"/_scheduler/jobs/{job_id}")[0] == 404
    status, answer = here.request("POST", "/_replicate", {"cancel": True, "replication_id": job_id})
    assert (status, answer["error"]) == (404, "not_found")


def test_what_cannot_work_is_refused(here: Running, there: Running, name: str) -> None:
    def refused(source: Any, target: Any = "t", **members: Any) -> tuple[int, str]:
        body = {"source": source, "target": target, **members}
        status, answer = here.request("POST", "/_replicate", body)
        return status, answer["error"]

    assert refused(url_of(there, "none"), name) == (404, "db_not_found")
    assert refused(url_of(there, name), "none-here") == (404, "db_not_found")
    assert refused(url_of(there, name, "admin:wrong"), name) == (401, "unauthorized")
    assert refused("http://127.0.0.1:1/x", name) == (500, "replication_failed")
    assert refused(7) == (400, "bad_request")
    assert refused("a", doc_ids=[], selector={}) == (400, "bad_request")
    body = {"source": "a", "target": "b"}
    assert here.request("POST", "/_replicate", body, admin=False)[0] == 401


def test_a_document_is_replicated_and_told_that_it_is(
    here: Running, there: Running, name: str
) -> None:
    doc = {"source": url_of(there, name), "target": name, "create_target": True}
    assert here.request("PUT", f"/_replicator/{name}", doc)[0] == 201
    row = await_state(here, name, "completed")
    assert row["info"]["docs_written"] == 45 and "secret" not in json.dumps(row)
    # The node knows before it is written into the document.
    path = f"/_replicator/{name}"
    here.await_true(lambda: "_replication_state" in here.request("GET", path)[1], DONE_S_MAX)
    held = here.request("GET", path)[1]
    assert held["_replication_state"] == "completed" and held["source"] == doc["source"]
    assert len(ids(here, name)) == 45
    rows = here.request("GET", "/_scheduler/docs?states=completed&limit=1000")[1]
    assert name in [row["doc_id"] for row in rows["docs"]]


def test_a_document_that_makes_no_sense_fails(here: Running) -> None:
    made = f"bad-{uuid4().hex}"
    assert here.request("PUT", f"/_replicator/{made}", {"source": "x"})[0] == 201
    row = await_state(here, made, "failed")
    assert "`target`" in row["info"]["error"]
    assert here.request("GET", f"/_replicator/{made}")[1]["_replication_state"] == "failed"


def test_a_source_that_cannot_be_reached_is_tried_again_and_again(
    here: Running, there: Running, name: str
) -> None:
    doc = {"source": url_of(there, name, "admin:wrong"), "target": name, "create_target": True}
    doc["continuous"] = True
    rev = here.request("PUT", f"/_replicator/{name}", doc)[1]["rev"]
    here.await_true(lambda: state_of(here, name).get("error_count", 0) >= 2, DONE_S_MAX)
    row = await_state(here, name, "crashing")
    assert row["info"]["error"].startswith("unauthorized to access http://127.0.0.1")
    assert "wrong" not in json.dumps(row)
    # With the right password it goes on as if nothing had been.
    doc["source"] = url_of(there, name)
    rev = here.request("PUT", f"/_replicator/{name}?rev={rev}", doc)[1]["rev"]
    here.await_true(lambda: len(ids(here, name)) == 45, DONE_S_MAX)
    await_state(here, name, "running")
    # Without its document it ends.
    assert here.request("DELETE", f"/_replicator/{name}?rev={rev}")[0] == 200
    here.await_true(lambda: job_of(here, name) is None, DONE_S_MAX)
    assert here.request("GET", f"/_scheduler/docs/_replicator/{name}")[0] == 404


def job_of(running: Running, doc_id: str) -> dict[str, Any] | None:
    rows = running.request("GET", "/_scheduler/jobs?limit=1000")[1]["jobs"]
    return next((row for row in rows if row["doc_id"] == doc_id), None)


def test_a_large_attachment_passes_through(here: Running, there: Running, name: str) -> None:
    large = PNG * 1500  # 15 MB
    status, _ = there.request(
        "PUT", f"/{name}/film/f.bin", large, headers={"content-type": "video/x"}
    )
    assert status == 201
    replicate(here, url_of(there, name), name, create_target=True)
    status, _, content = here.exchange("GET", f"/{name}/film/f.bin")
    assert status == 200 and content == large


def test_users_replicate_what_they_may(here: Running, there: Running, name: str) -> None:
    user = f"u{uuid4().hex[:8]}"
    doc = {"_id": f"org.couchdb.user:{user}", "name": user, "type": "user", "roles": []}
    assert here.request("PUT", f"/_users/{doc['_id']}", doc | {"password": "p"})[0] == 201
    login = f"{user}:p"
    body = {"source": url_of(there, name), "target": name}
    assert here.request("PUT", f"/{name}")[0] == 201
    status, answer = as_user(here, login, body)
    assert (status, answer["error"]) == (401, "unauthorized")
    open_to_all: dict[str, Any] = {"admins": {}, "members": {}}
    assert here.request("PUT", f"/{name}/_security", open_to_all)[0] == 200
    status, answer = as_user(here, login, body)
    assert status == 200 and answer["history"][0]["docs_written"] == 45


def test_documents_of_replicator_are_written_by_server_admins_only(here: Running) -> None:
    user = f"u{uuid4().hex[:8]}"
    doc = {"_id": f"org.couchdb.user:{user}", "name": user, "type": "user", "roles": []}
    assert here.request("PUT", f"/_users/{doc['_id']}", doc | {"password": "p"})[0] == 201
    before = here.request("GET", "/_replicator/_security")[1]
    members = {"members": {"names": [user]}, "admins": {"names": [user]}}
    assert here.request("PUT", "/_replicator/_security", members)[0] == 200
    body = {"source": "_users", "target": "mine", "create_target": True}
    login, here.credentials = here.credentials, f"{user}:p"
    try:
        assert here.request("PUT", "/_replicator/steals", body)[0] in (401, 403)
    finally:
        here.credentials = login
        assert here.request("PUT", "/_replicator/_security", before)[0] == 200
    assert here.request("GET", "/_replicator/steals")[0] == 404


def as_user(running: Running, login: str, body: dict[str, Any]) -> tuple[int, Any]:
    before, running.credentials = running.credentials, login
    try:
        return running.request("POST", "/_replicate", body)
    finally:
        running.credentials = before


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters, whose processes are not started again."""
    folder = tmp_path_factory.mktemp("pair")
    with clustered(folder, "--no-restart", masters=2, replicas=1) as started:
        yield started


def test_the_node_that_runs_it_is_killed_and_another_goes_on(pair: Cluster) -> None:
    for database in ("origin", "copy"):
        assert pair.request("PUT", f"/{database}")[0] == 201
    fill(pair, "origin", 30)
    doc = {"source": "origin", "target": "copy", "continuous": True}
    assert pair.request("PUT", "/_replicator/moves", doc)[0] == 201
    pair.await_true(lambda: len(ids(pair, "copy")) == 30, DONE_S_MAX)
    first = await_state(pair, "moves", "running")["node"]
    other = "m2" if first == "m1" else "m1"
    pair.kill_for_good(first)
    fill_at(pair, other)
    pair.await_true(lambda: ran_by(pair, other) not in (None, first), DONE_S_MAX)
    pair.await_true(lambda: len(ids_at(pair, other)) == 35, DONE_S_MAX)


def ran_by(cluster: Cluster, asked: str) -> Any:
    status, row = cluster.request("GET", "/_scheduler/docs/_replicator/moves", node=asked)
    return row.get("node") if status == 200 and row["state"] == "running" else None


def fill_at(cluster: Cluster, asked: str) -> None:
    docs = [{"_id": f"late{n}"} for n in range(5)]
    status, _ = cluster.request("POST", "/origin/_bulk_docs", {"docs": docs}, node=asked)
    assert status == 201


def ids_at(cluster: Cluster, asked: str) -> list[str]:
    return [r["id"] for r in cluster.request("GET", "/copy/_all_docs", node=asked)[1]["rows"]]
