"""Answers that were once wrong: each is what CouchDB gives, or what keeps a promise of ours."""

from collections.abc import Iterator

import httpx
import pytest

from tests.running import Running
from tests.system.js_clients import auth_url

SECRET = "/_node/_local/_config/chttpd_auth/secret"


@pytest.fixture
def api(node: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=auth_url(node)) as client:
        yield client


def test_a_preflight_carries_each_header_once(api: httpx.Client) -> None:
    config = "/_node/_local/_config"
    api.put(f"{config}/chttpd/enable_cors", json="true")
    api.put(f"{config}/cors/origins", json="*")
    try:
        asked = {"origin": "http://a.example", "access-control-request-method": "PUT"}
        answer = api.request("OPTIONS", "/answers-cors", headers=asked)
        assert answer.status_code == 204
        names = [name.lower() for name, _ in answer.headers.raw]
        assert names.count(b"access-control-allow-origin") == 1
        refused = api.put(f"{config}/cors/max_age", json="1\r\nx: y")
        assert refused.status_code == 400
    finally:
        api.delete(f"{config}/cors/origins")
        api.delete(f"{config}/chttpd/enable_cors")


def test_a_local_document_is_one_however_it_is_named(api: httpx.Client) -> None:
    api.put("/answers-local")
    assert api.put("/answers-local/_local%2Fa", json={"v": 1}).json()["rev"] == "0-1"
    assert api.get("/answers-local/_local/a").json()["v"] == 1
    copied = api.request("COPY", "/answers-local/_local/a", headers={"destination": "_local/b"})
    assert copied.status_code == 201
    assert api.get("/answers-local/_local%2Fb").json()["v"] == 1
    assert api.get("/answers-local/_changes").json()["results"] == []
    assert api.delete("/answers-local/_local%2Fa").status_code == 200
    assert api.get("/answers-local/_local/a").status_code == 404


def test_a_new_conflict_is_not_hidden_by_a_304(api: httpx.Client) -> None:
    api.put("/answers-304")
    api.put("/answers-304/d", json={"v": 1})
    first = api.get("/answers-304/d?conflicts=true")
    assert "etag" not in first.headers
    tag = api.get("/answers-304/d").headers["etag"]
    lost = {"new_edits": False, "docs": [{"_id": "d", "_rev": "1-0"}]}
    api.post("/answers-304/_bulk_docs", json=lost)
    again = api.get("/answers-304/d?conflicts=true", headers={"if-none-match": tag})
    assert again.status_code == 200
    assert again.json()["_conflicts"] == ["1-0"]
    assert api.get("/answers-304/d", headers={"if-none-match": tag}).status_code == 304


def test_only_server_admins_purge(api: httpx.Client, node: Running) -> None:
    api.put("/answers-purge")
    rev = api.put("/answers-purge/d", json={}).json()["rev"]
    joe = {"name": "answers-joe", "password": "pw", "roles": [], "type": "user"}
    api.put("/_users/org.couchdb.user:answers-joe", json=joe)
    api.put("/answers-purge/_security", json={"admins": {"names": ["answers-joe"]}})
    with httpx.Client(base_url=node.url, auth=("answers-joe", "pw")) as as_joe:
        assert as_joe.post("/answers-purge/_purge", json={"d": [rev]}).status_code == 401
        assert as_joe.get("/answers-purge/d").status_code == 200


def test_cookies_are_never_signed_with_nothing(api: httpx.Client) -> None:
    before = api.get(SECRET).json()
    assert api.put(SECRET, json="").status_code == 400
    assert api.delete(SECRET).json() == before
    after = api.get(SECRET).json()
    assert after not in ("", before)


def test_all_revisions_with_a_large_attachment_come_in_pieces(api: httpx.Client) -> None:
    api.put("/answers-open")
    data = bytes(range(256)) * 4096
    rev = api.put("/answers-open/d/a", content=data).json()["rev"]
    for number in range(3):
        fork = {"_id": "d", "_rev": f"2-{number}", "_attachments": {"a": {"stub": True}}}
        fork["_revisions"] = {"start": 2, "ids": [str(number), rev[2:]]}
        api.post("/answers-open/_bulk_docs", json={"new_edits": False, "docs": [fork]})
    query = "open_revs=all&attachments=true"
    answer = api.get(f"/answers-open/d?{query}", headers={"accept": "application/json"})
    assert "content-length" not in answer.headers
    rows = answer.json()
    assert len(rows) == 3
    assert all(
        len(row["ok"]["_attachments"]["a"]["data"]) == 4 * -(-len(data) // 3) for row in rows
    )


def test_numbers_that_cannot_be_kept_are_refused(api: httpx.Client) -> None:
    api.put("/answers-numbers")
    for number in (2**64, -(2**63) - 1, 10**30):
        assert api.put("/answers-numbers/d", json={"n": number}).status_code == 400
    long_text = {"n": 2**64 - 1, "text": "9" * 30, "f": 1.0}
    assert api.put("/answers-numbers/d", json=long_text).status_code == 201
    assert api.get("/answers-numbers/d").json()["n"] == 2**64 - 1
