"""What is written anywhere is everywhere: real documents, attachments, users, registers."""

import base64
import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.running import CONVERGE_S_MAX, Cluster, basic, divandb
from tests.system.js_clients import FOLDER, install
from tests.system.load import ancestry, trees_of
from tests.system.wire import Wire

MOVIES = FOLDER / "node_modules" / "vega-datasets" / "data" / "movies.json"
MIB = 2**20
SHARED_DOCS = 50
ROUNDS = 3


@contextlib.contextmanager
def wire_to(cluster: Cluster, node: str | None) -> Iterator[Wire]:
    with contextlib.closing(Wire(cluster.port_of(node), cluster.credentials)) as wire:
        yield wire


# --- Real documents


def test_three_thousand_movies_are_complete_and_identical_on_all_nodes(
    cluster: Cluster, db: str
) -> None:
    """Imported through the shared port, read from each node."""
    problem = install()
    assert problem is None, problem
    movies = json.loads(MOVIES.read_bytes())
    assert len(movies) > 3000
    place = ["--url", cluster.url, "--user", cluster.credentials]
    done = divandb("import", db, str(MOVIES), *place)
    assert done.returncode == 0, done.stderr
    digest = cluster.await_converged()[db]["digest"]

    def read(node: str) -> tuple[int, bytes]:
        path = f"/{db}/_all_docs?include_docs=true"
        status, _, content = cluster.exchange("GET", path, node=node)
        return status, content

    status, content = cluster.everywhere(read)
    assert status == 200
    docs = [row["doc"] for row in json.loads(content)["rows"]]
    assert len({doc["_rev"] for doc in docs if doc["_rev"].startswith("1-")}) > 3000
    bodies = [{k: v for k, v in doc.items() if k[0] != "_"} for doc in docs]
    assert sorted(map(_text, bodies)) == sorted(map(_text, movies))
    checked = cluster.everywhere(
        lambda node: cluster.request("GET", f"/{db}/_divan/digest?check=true", node=node)[1][
            "digest"
        ]
    )
    assert checked == digest


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# --- Writes at any node


def test_writes_at_every_node_are_taken_and_come_to_all(cluster: Cluster, db: str) -> None:
    revs = {}
    for node in cluster.nodes:
        status, created = cluster.request("PUT", f"/{db}/{node}", {"n": 1}, node=node)
        assert status == 201, created
        body = {"n": 2, "_rev": created["rev"]}
        status, changed = cluster.request("PUT", f"/{db}/{node}", body, node=node)
        assert status == 201, changed
        status, posted = cluster.request("POST", f"/{db}", {"from": node}, node=node)
        assert status == 201, posted
        revs[node], revs[posted["id"]] = changed["rev"], posted["rev"]
    status, gone = cluster.request("DELETE", f"/{db}/m1?rev={revs['m1']}", node="m3-r3")
    assert status == 200, gone
    cluster.await_converged()
    del revs["m1"]
    rows = cluster.everywhere(
        lambda node: cluster.request("GET", f"/{db}/_all_docs", node=node)[1]["rows"]
    )
    assert {row["id"]: row["value"]["rev"] for row in rows} == revs
    assert cluster.request("GET", f"/{db}/m1", node="m2-r2")[0] == 404


def test_bulk_writes_at_replicas_are_answered_row_by_row(cluster: Cluster, db: str) -> None:
    docs = [{"_id": f"{number:04}", "n": number} for number in range(1000)]
    status, rows = cluster.request("POST", f"/{db}/_bulk_docs", {"docs": docs}, node="m1-r1")
    assert status == 201
    assert all(row["ok"] for row in rows)
    assert [row["id"] for row in rows] == [doc["_id"] for doc in docs]
    cluster.await_converged()
    again = [{"_id": "0000"}, {"_id": "new"}, {"_id": "0001", "_rev": rows[1]["rev"]}]
    status, rows = cluster.request("POST", f"/{db}/_bulk_docs", {"docs": again}, node="m3-r1")
    assert status == 201
    assert [row.get("error") for row in rows] == ["conflict", None, None]
    cluster.await_converged()
    found = cluster.everywhere(
        lambda node: cluster.request("GET", f"/{db}", node=node)[1]["doc_count"]
    )
    assert found == 1001


def test_local_documents_are_read_back_on_any_node(cluster: Cluster, db: str) -> None:
    status, answer = cluster.request("PUT", f"/{db}/_local/here", {"n": 1}, node="m1-r1")
    assert status == 201, answer
    body = {"n": 2, "_rev": answer["rev"]}
    status, answer = cluster.request("PUT", f"/{db}/_local/here", body, node="m1-r1")
    assert status == 201, answer
    cluster.await_converged()
    assert cluster.everywhere(
        lambda node: cluster.request("GET", f"/{db}/_local/here", node=node)[1]
    ) == {"_id": "_local/here", "_rev": answer["rev"], "n": 2}


def test_security_holds_on_all_nodes(cluster: Cluster, db: str) -> None:
    security = {"admins": {"names": ["a"], "roles": []}, "members": {"names": ["b"], "roles": []}}
    assert cluster.request("PUT", f"/{db}/_security", security, node="m2-r1")[0] == 200
    cluster.await_converged()
    found = cluster.everywhere(
        lambda node: cluster.request("GET", f"/{db}/_security", node=node)[1]
    )
    assert found == security


def test_a_user_logs_in_on_all_nodes_when_it_is_answered(cluster: Cluster) -> None:
    name = f"user-{uuid4().hex}"
    user = {"name": name, "password": "pass word", "roles": ["reader"], "type": "user"}
    path = f"/_users/org.couchdb.user:{name}"
    status, answer = cluster.request("PUT", path, user, node="m1-r1")
    assert status == 201, answer
    headers = {"authorization": basic(f"{name}:pass word")}
    wrong = {"authorization": basic(f"{name}:wrong")}

    def asked(node: str) -> Any:
        status, said = cluster.request("GET", "/_session", headers=headers, admin=False, node=node)
        refused, _ = cluster.request("GET", "/_session", headers=wrong, admin=False, node=node)
        return status, said["userCtx"], refused

    assert cluster.everywhere(asked) == (200, {"name": name, "roles": ["reader"]}, 401)

    # A cookie of one node is good at the others.
    login = {"name": name, "password": "pass word"}
    status, headers_in, _ = cluster.exchange("POST", "/_session", login, admin=False, node="m1-r2")
    assert status == 200
    cookie = {"cookie": headers_in["set-cookie"].partition(";")[0]}
    assert cluster.everywhere(
        lambda node: cluster.request("GET", "/_session", headers=cookie, admin=False, node=node)[1][
            "userCtx"
        ]["name"]
    ) == (name)


def test_settings_are_the_same_on_all_nodes(cluster: Cluster) -> None:
    path = "/_node/_local/_config/mine/key"
    assert cluster.request("PUT", path, "one", node="m2-r3") == (200, "")
    cluster.await_converged()
    assert cluster.everywhere(lambda node: cluster.request("GET", path, node=node)) == (200, "one")
    assert cluster.request("DELETE", path, node="m1") == (200, "one")
    cluster.await_converged()
    assert cluster.everywhere(lambda node: cluster.request("GET", path, node=node)[0]) == 404


def test_databases_made_and_dropped_are_so_on_all_nodes_when_it_is_answered(
    cluster: Cluster,
) -> None:
    chance = random.Random(4)
    for number in range(6):
        name = f"made-{uuid4().hex}"
        node = chance.choice(cluster.nodes)
        assert cluster.request("PUT", f"/{name}", node=node)[0] == 201
        assert (
            cluster.everywhere(lambda at, name=name: cluster.request("GET", f"/{name}", node=at)[0])
            == 200
        ), f"{number}: made at {node}"
        node = chance.choice(cluster.nodes)
        assert cluster.request("DELETE", f"/{name}", node=node)[0] == 200
        assert (
            cluster.everywhere(lambda at, name=name: cluster.request("GET", f"/{name}", node=at)[0])
            == 404
        ), f"{number}: dropped at {node}"


# --- Attachments


def test_a_large_attachment_streams_through_a_replica_and_reads_back_everywhere(
    cluster: Cluster, db: str
) -> None:
    data = random.Random(20).randbytes(20 * MIB)
    digest = hashlib.sha256(data).hexdigest()
    status, answer = cluster.request(
        "PUT", f"/{db}/large/data.bin", data, {"content-type": "application/x-data"}, node="m2-r2"
    )
    assert status == 201, answer
    cluster.await_converged()

    def read(node: str) -> tuple[int, str]:
        status, _, content = cluster.exchange("GET", f"/{db}/large/data.bin", node=node)
        return status, hashlib.sha256(content).hexdigest()

    assert cluster.everywhere(read) == (200, digest)
    headers = {"range": "bytes=1048570-1048585"}
    assert (
        cluster.exchange("GET", f"/{db}/large/data.bin", headers=headers, node="m3-r1")[2]
        == data[1048570:1048586]
    )


def test_an_attachment_is_readable_at_once_where_its_document_is(cluster: Cluster, db: str) -> None:
    """Its bytes may be on their way: then the read is forwarded."""
    for number, node in enumerate(["m1-r1", "m2-r2", "m3", "m3-r3"]):
        data = random.Random(number).randbytes(3 * MIB)
        path = f"/{db}/doc-{number}/data"
        headers = {"content-type": "application/x-data"}
        status, said, _ = cluster.exchange("PUT", path, data, headers, node=node)
        assert status == 201
        token = {"divan-session": said["divan-session"]}
        for other in ("m1-r3", "m2", "m3-r1"):
            status, _, content = cluster.exchange("GET", path, headers=token, node=other)
            assert (status, content == data) == (200, True), (node, other)


def test_small_attachments_travel_inside_their_documents(cluster: Cluster, db: str) -> None:
    data = base64.b64encode(b"hello").decode()
    doc = {"_attachments": {"hello.txt": {"content_type": "text/plain", "data": data}}}
    status, answer = cluster.request("PUT", f"/{db}/small", doc, node="m1-r3")
    assert status == 201, answer
    cluster.await_converged()
    read = cluster.everywhere(
        lambda node: cluster.request("GET", f"/{db}/small?attachments=true", node=node)[1]
    )
    assert read["_attachments"]["hello.txt"]["data"] == data
    assert cluster.everywhere(
        lambda node: cluster.exchange("GET", f"/{db}/small/hello.txt", node=node)[2]
    ) == (b"hello")


# --- Concurrent writers


class Quarreller(threading.Thread):
    """Writes the same documents as the others, at a master of its own."""

    def __init__(self, cluster: Cluster, db: str, master: str) -> None:
        super().__init__(name=master, daemon=True)
        self._wire = Wire(cluster.port_of(master), cluster.credentials)
        self._db = db
        self._master = master
        self._random = random.Random(master)
        self.acknowledged: dict[str, list[str]] = {}
        self.conflicts = 0
        self.surprise: BaseException | None = None

    def run(self) -> None:
        try:
            for turn in range(ROUNDS):
                names = [f"doc-{number:02}" for number in range(SHARED_DOCS)]
                self._random.shuffle(names)
                for name in names:
                    kind = self._random.choices([self._edit, self._remove, self._graft], [7, 1, 2])
                    kind[0](name, turn)
        except BaseException as surprise:
            self.surprise = surprise
        finally:
            self._wire.close()

    def _rev(self, name: str) -> str | None:
        answer = self._wire.ask("GET", f"/{self._db}/{name}")
        assert answer.status in (200, 404), answer
        return answer.json["_rev"] if answer.status == 200 else None

    def _edit(self, name: str, turn: int) -> None:
        rev = self._rev(name)
        body: dict[str, Any] = {"by": self._master, "turn": turn}
        self._send("PUT", name, body if rev is None else {**body, "_rev": rev})

    def _remove(self, name: str, turn: int) -> None:
        rev = self._rev(name)
        if rev is not None:
            self._send("PUT", name, {"_rev": rev, "_deleted": True, "by": self._master})

    def _graft(self, name: str, turn: int) -> None:
        rev = self._rev(name)
        ids = [f"{self._random.getrandbits(128):032x}"]
        start = 1
        if rev is not None:
            number, _, parent = rev.partition("-")
            start, ids = int(number) + 1, [*ids, parent]
        doc = {"_id": name, "by": self._master, "_rev": f"{start}-{ids[0]}"}
        doc["_revisions"] = {"start": start, "ids": ids}  # type: ignore[assignment]
        body = {"docs": [doc], "new_edits": False}
        answer = self._wire.ask("POST", f"/{self._db}/_bulk_docs", body)
        assert (answer.status, answer.json) == (201, []), answer
        self.acknowledged.setdefault(name, []).append(str(doc["_rev"]))

    def _send(self, method: str, name: str, body: Any) -> None:
        answer = self._wire.ask(method, f"/{self._db}/{name}", body)
        if answer.status == 409:
            self.conflicts += 1
            return
        assert answer.status == 201, answer
        self.acknowledged.setdefault(name, []).append(answer.json["rev"])


def test_writers_at_three_masters_quarrel_over_fifty_documents(cluster: Cluster, db: str) -> None:
    """Every node ends with the same trees, and what was acknowledged is in them."""
    writers = [Quarreller(cluster, db, master) for master in cluster.masters]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.surprise for writer in writers] == [None] * 3
    cluster.await_converged()
    names = sorted({name for writer in writers for name in writer.acknowledged})
    assert len(names) == SHARED_DOCS

    def trees(node: str) -> dict[str, list[Any]]:
        return {
            name: sorted(leaves, key=lambda leaf: str(leaf["_rev"]))
            for name, leaves in trees_of(cluster, node, db, names).items()
        }

    found = cluster.everywhere(trees)
    for name in names:
        known = {rev for leaf in found[name] for rev in ancestry(leaf)}
        for writer in writers:
            assert set(writer.acknowledged.get(name, ())) <= known, (name, writer.name)
    assert any(len(leaves) > 1 for leaves in found.values()), "nobody quarrelled"

    def winners(node: str) -> list[Any]:
        with wire_to(cluster, node) as wire:
            paths = [f"/{db}/{name}?conflicts=true&deleted_conflicts=true" for name in names]
            return [wire.ask("GET", path).json for path in paths]

    def open_revs(node: str) -> list[Any]:
        with wire_to(cluster, node) as wire:
            found = []
            for name in names[:10]:
                answer = wire.ask(
                    "GET", f"/{db}/{name}?open_revs=all", headers={"accept": "application/json"}
                )
                found.append(sorted(answer.json, key=_text))
            return found

    cluster.everywhere(winners)
    cluster.everywhere(open_revs)


def test_an_import_is_exported_alike_by_any_node(cluster: Cluster, db: str, tmp_path: Path) -> None:
    rows = [{"_id": f"{number:03}", "n": number} for number in range(300)]
    text = "\n".join(map(json.dumps, rows)).encode()
    place = ["--url", cluster.url, "--user", cluster.credentials]
    assert divandb("import", db, "-", *place, text=text).returncode == 0
    cluster.await_converged()
    said = set()
    for node in ("m1", "m2-r1", "m3-r3"):
        url = cluster.record(node)["url"]
        done = divandb("export", db, "-", "--url", url, "--user", cluster.credentials)
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1
    assert len(said.pop().splitlines()) == 300


def test_a_compaction_is_of_all_nodes(cluster: Cluster) -> None:
    """Bodies of replaced revisions are gone wherever one asks for them."""
    path = f"/compacted-{uuid4().hex}"
    assert cluster.request("PUT", path)[0] == 201
    status, first = cluster.request("PUT", f"{path}/d?concern=visible", {"v": 1})
    assert status == 201
    body = {"v": 2, "_rev": first["rev"]}
    assert cluster.request("PUT", f"{path}/d?concern=visible", body)[0] == 201
    old = f"{path}/d?rev={first['rev']}"
    replica = next(name for name in cluster.nodes if "-r" in name)
    assert cluster.request("POST", f"{path}/_compact", {}, node=replica)[0] == 202

    def is_gone() -> bool:
        return all(cluster.request("GET", old, node=name)[0] == 404 for name in cluster.nodes)

    cluster.await_true(is_gone, CONVERGE_S_MAX)
    for name in cluster.nodes:
        assert cluster.request("GET", f"{path}/d", node=name)[1]["v"] == 2
