"""Who may do what: logins, sessions, `_users`, `_security`, throttling and CORS, over HTTP."""

import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divandb.server import TABLES
from tests.running import Running, basic, running
from tests.system.wire import ELSEWHERE, LOCALHOST, Answer, Wire, faults, wired

FORM = {"content-type": "application/x-www-form-urlencoded"}
CONFIG = "/_node/_local/_config"
WRONG = (401, "unauthorized", "Name or password is incorrect.")
LOCKED = (
    403,
    "forbidden",
    "Account is temporarily locked due to multiple authentication failures",
)
NO_LOGIN = (401, "unauthorized", "Authentication required.")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node of its own, since users and settings belong to all of it; with cheap passwords."""
    with running(tmp_path_factory.mktemp("guarded")) as node:
        assert node.request("PUT", f"{CONFIG}/chttpd_auth/iterations", "10")[0] == 200
        # A new database is for server admins only, and `_users` is no exception.
        assert node.request("GET", "/_users/_security")[1]["members"] == {"roles": ["_admin"]}
        assert node.request("PUT", "/_users/_security", {"admins": {"roles": ["_admin"]}})[0] == 200
        yield node
        assert faults(node) == ""


@pytest.fixture
def admin(guarded: Running) -> Iterator[Wire]:
    with wired(guarded) as wire:
        yield wire


@pytest.fixture
def nobody(guarded: Running) -> Iterator[Wire]:
    with wired(guarded, "") as wire:
        yield wire


@contextlib.contextmanager
def setting(admin: Wire, name: str, value: str) -> Iterator[None]:
    """A setting for the time of a test."""
    assert admin.ask("PUT", f"{CONFIG}/{name}", value).status == 200
    try:
        yield
    finally:
        assert admin.ask("DELETE", f"{CONFIG}/{name}").status == 200


def sign_up(admin: Wire, name: str, password: str = "secret", **members: Any) -> str:
    """A new user; the revision of its document."""
    doc = {"type": "user", "name": name, "roles": [], "password": password, **members}
    answer = admin.ask("PUT", f"/_users/org.couchdb.user:{name}", doc)
    assert answer.status == 201, answer
    rev: str = answer.json["rev"]
    return rev


def log_in(wire: Wire, name: str, password: str) -> Answer:
    return wire.ask("POST", "/_session", {"name": name, "password": password})


def cookie_of(answer: Answer) -> dict[str, str]:
    """The header that carries the session of an answer back."""
    value = answer.headers["set-cookie"].partition(";")[0]
    assert value.startswith("AuthSession=")
    return {"cookie": value}


def name_of(wire: Wire, headers: dict[str, str] | None = None) -> str | None:
    """Who the server takes one for."""
    answer = wire.ask("GET", "/_session", None, headers or {})
    assert answer.status == 200, answer
    name: str | None = answer.json["userCtx"]["name"]
    return name


# --- anonymous


def test_nobody_gets_anything_but_the_public_pages(nobody: Wire, admin: Wire) -> None:
    admin.ask("PUT", "/open")
    admin.ask("PUT", "/open/_security", {})
    for path in ("/", "/_up", "/_session", "/_utils", "/_utils/"):
        assert nobody.ask("GET", path).status == 200, path
    for table in TABLES:
        for template, methods in table:
            path = re.sub(r"{\w+(:path)?}", "x", template.replace("{db}", "open"))
            if path in ("/", "/_up", "/_session", "/_utils", "/_utils/"):
                continue
            for method in methods:
                assert nobody.ask(method, path, {}).error == NO_LOGIN, (method, path)
    for path in ("/none", "/no/such/path", "/_nothing"):
        assert nobody.ask("GET", path).error == NO_LOGIN


def test_nobody_has_a_session_without_a_name(nobody: Wire) -> None:
    assert nobody.ask("GET", "/_session").json == {
        "ok": True,
        "userCtx": {"name": None, "roles": []},
        "info": {"authentication_handlers": ["cookie", "default"]},
    }


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic ",
        "Basic !",
        "Basic YWRtaW4",
        "Basic " + base64.b64encode(b"admin").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Basic " + base64.b64encode(b"_:_").decode(),
        "Bearer abc",
        "Digest username=admin",
        "nonsense",
        "",
    ],
)
def test_a_malformed_authorization_is_nobody_and_no_failed_login(nobody: Wire, header: str) -> None:
    sent = {"authorization": header}
    for _ in range(7):
        assert name_of(nobody, sent) is None
    assert nobody.ask("GET", "/_all_dbs", None, sent).error == NO_LOGIN


def test_require_valid_user_can_be_turned_off(admin: Wire, nobody: Wire) -> None:
    """Then a database without members is public, and everything else is as closed as before."""
    admin.ask("PUT", "/public")
    admin.ask("PUT", "/public/doc", {"n": 1})
    admin.ask("PUT", "/private")
    with setting(admin, "chttpd/require_valid_user", "false"):
        refused = (401, "unauthorized", "You are not authorized to access this db.")
        for path in ("/public", "/public/doc", "/private", "/private/doc"):
            assert nobody.ask("GET", path).error == refused
        admin.ask("PUT", "/public/_security", {})
        assert nobody.ask("GET", "/public/doc").json["n"] == 1
        assert nobody.ask("GET", "/public/_all_docs").status == 200
        assert nobody.ask("PUT", "/public/mine", {"n": 2}).status == 201
        assert nobody.ask("GET", "/private").error == refused
        assert nobody.ask("GET", "/none").status == 404
        not_admin = (401, "unauthorized", "You are not a db or server admin.")
        assert nobody.ask("PUT", "/public/_design/x", {}).error == not_admin
        assert nobody.ask("PUT", "/public/_security", {}).error == not_admin
        not_server_admin = (401, "unauthorized", "You are not a server admin.")
        for method, path in [("PUT", "/new"), ("DELETE", "/public"), ("GET", "/_all_dbs")]:
            assert nobody.ask(method, path).error == not_server_admin
    assert nobody.ask("GET", "/public/doc").error == NO_LOGIN


# --- sessions


def test_a_session_begins_with_a_login_and_ends_with_a_logout(admin: Wire, nobody: Wire) -> None:
    sign_up(admin, "anna", roles=["staff"])
    answer = log_in(nobody, "anna", "secret")
    assert (answer.status, answer.json) == (200, {"ok": True, "name": "anna", "roles": ["staff"]})
    assert re.fullmatch(
        r"AuthSession=[\w-]+; Version=1; Expires=\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT; "
        r"Max-Age=600; Path=/; HttpOnly",
        answer.headers["set-cookie"],
    )
    cookie = cookie_of(answer)
    session = nobody.ask("GET", "/_session", None, cookie).json
    assert session["userCtx"] == {"name": "anna", "roles": ["staff"]}
    assert session["info"]["authenticated"] == "cookie"
    answer = nobody.ask("DELETE", "/_session", None, cookie)
    assert (answer.status, answer.json) == (200, {"ok": True})
    cleared = answer.headers["set-cookie"]
    assert cleared.startswith("AuthSession=; Version=1; ") and "Max-Age=0" in cleared
    assert name_of(nobody, {"cookie": "AuthSession="}) is None


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"name=anna2&password=secret", FORM),
        (b"name=anna2&password=secret", {**FORM, "content-type": FORM["content-type"] + ";x=y"}),
        (b'{"name":"anna2","password":"secret"}', {"content-type": "application/json"}),
        (b"name=anna2&password=secret", {}),
    ],
)
def test_a_login_is_a_form_or_json(
    admin: Wire, nobody: Wire, body: bytes, headers: dict[str, str]
) -> None:
    if admin.ask("GET", "/_users/org.couchdb.user:anna2").status == 404:
        sign_up(admin, "anna2")
    assert nobody.ask("POST", "/_session", body, headers).json["name"] == "anna2"


def test_a_wrong_login_is_401_and_a_bad_one_400(admin: Wire, nobody: Wire) -> None:
    sign_up(admin, "bert")
    assert log_in(nobody, "bert", "wrong").error == WRONG
    assert log_in(nobody, "nobody", "secret").error == WRONG
    assert nobody.ask("GET", "/", None, {"authorization": basic("bert:wrong")}).error == WRONG
    bodies: list[Any] = [{}, {"name": "bert"}, {"password": "x"}, {"name": 1, "password": 2}, [], 7]
    for body in bodies:
        assert nobody.ask("POST", "/_session", body).status == 400, body
    assert nobody.ask("POST", "/_session", b"<x/>", {"content-type": "text/xml"}).status == 400
    assert log_in(nobody, "bert", "secret").status == 200


@pytest.mark.parametrize("target", ["/x", "//evil.example", "http://evil.example", "\\\\evil"])
def test_a_login_leads_on_only_within_this_server(admin: Wire, nobody: Wire, target: str) -> None:
    if admin.ask("GET", "/_users/org.couchdb.user:carl").status == 404:
        sign_up(admin, "carl")
    body = b"name=carl&password=secret"
    answer = nobody.ask("POST", f"/_session?next={target}", body, FORM)
    assert answer.status == 302
    assert answer.headers["location"].startswith("/")
    assert answer.headers["location"][1:2] not in ("/", "\\")
    failed = nobody.ask("POST", f"/_session?fail={target}", b"name=carl&password=x", FORM)
    assert failed.status == 302
    assert "evil" not in failed.headers["location"][:2]


def test_a_cookie_that_was_tampered_with_is_nobody_or_400(admin: Wire, nobody: Wire) -> None:
    sign_up(admin, "dora")
    value = cookie_of(log_in(nobody, "dora", "secret"))["cookie"].removeprefix("AuthSession=")
    assert name_of(nobody, {"cookie": f"AuthSession={value}"}) == "dora"
    plain = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    for forged in (
        plain.replace(b"dora", b"admin"),
        plain[:-1] + bytes([plain[-1] ^ 1]),
        plain[:-1],
    ):
        text = base64.urlsafe_b64encode(forged).decode().rstrip("=")
        assert name_of(nobody, {"cookie": f"AuthSession={text}"}) is None
    for junk in ("x", "!!!", "é", "a" * 3000):
        answer = nobody.ask("GET", "/_session", None, {"cookie": f"AuthSession={junk}"})
        assert answer.error == (
            400,
            "bad_request",
            "Malformed AuthSession cookie. Please clear your cookies.",
        )


def test_a_cookie_ends_by_itself_and_is_renewed_while_it_is_used(admin: Wire, nobody: Wire) -> None:
    sign_up(admin, "emil")
    with setting(admin, "chttpd_auth/timeout", "3"):
        cookie = cookie_of(log_in(nobody, "emil", "secret"))
        assert nobody.ask("GET", "/_session", None, cookie).headers["set-cookie"] is None
        time.sleep(1.6)
        renewed = nobody.ask("GET", "/_session", None, cookie)
        assert renewed.json["userCtx"]["name"] == "emil"
        fresh = cookie_of(renewed)
        assert fresh != cookie
        time.sleep(2)
        assert name_of(nobody, cookie) is None
        assert name_of(nobody, fresh) == "emil"


def test_the_admin_logs_in_by_cookie_too(guarded: Running, nobody: Wire) -> None:
    answer = log_in(nobody, guarded.admin, guarded.password)
    assert answer.json["roles"] == ["_admin"]
    assert nobody.ask("GET", "/_all_dbs", None, cookie_of(answer)).status == 200


def test_sessions_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as node, wired(node, "") as wire:
        cookie = cookie_of(log_in(wire, node.admin, node.password))
        node.restart()
        assert name_of(wire, cookie) == node.admin


# --- _users


def test_a_user_document_hides_the_password(admin: Wire) -> None:
    sign_up(admin, "fred")
    doc = admin.ask("GET", "/_users/org.couchdb.user:fred").json
    assert "password" not in doc
    assert doc["password_scheme"] == "pbkdf2"
    assert doc["pbkdf2_prf"] == "sha256"
    assert doc["iterations"] == 10
    assert re.fullmatch("[0-9a-f]{64}", doc["derived_key"])
    assert re.fullmatch("[0-9a-f]{32}", doc["salt"])


def test_users_read_and_change_their_own_document_only(guarded: Running, admin: Wire) -> None:
    rev = sign_up(admin, "gina")
    sign_up(admin, "hugo")
    own, other = "/_users/org.couchdb.user:gina", "/_users/org.couchdb.user:hugo"
    with wired(guarded, "gina:secret") as gina:
        doc = gina.ask("GET", own).json
        assert doc["_rev"] == rev
        missing = (404, "not_found", "missing")
        assert gina.ask("GET", other).error == missing
        assert gina.ask("GET", f"{other}?open_revs=all").error == missing
        assert gina.ask("GET", f"{other}?rev=1-a").error == missing
        assert gina.ask("GET", "/_users/org.couchdb.user:nobody").error == missing
        assert gina.ask("GET", f"{other}/att").error == missing
        found = gina.ask("POST", "/_users/_bulk_get", {"docs": [{"id": other[8:]}]}).json
        assert "ok" not in json.dumps(found["results"][0]["docs"])
        for path in ("_all_docs", "_changes", "_design_docs", "_local_docs", "_all_docs/queries"):
            method = "POST" if "queries" in path else "GET"
            answer = gina.ask(method, f"/_users/{path}", {"queries": [{}]} if "q" in path else None)
            assert answer.status in (401, 403), path
            assert "hugo" not in answer.body.decode()
        with wired(guarded) as trusted:
            hugo = trusted.ask("GET", other).json
        changes: list[dict[str, Any]] = [{"a": 1}, {"password": "stolen"}, {"_deleted": True}]
        for change in changes:
            answer = gina.ask("PUT", other, {**hugo, **change})
            assert answer.status in (403, 404), answer
        assert gina.ask("DELETE", f"{other}?rev={hugo['_rev']}").status in (403, 404)
        roles = (403, "forbidden", "Only _admin may edit roles")
        assert gina.ask("PUT", own, {**doc, "roles": ["staff"]}).error == roles
        assert gina.ask("PUT", own, {**doc, "roles": ["_admin"]}).status == 403
        assert gina.ask("PUT", own, {**doc, "name": "gina2"}).status == 403
        assert gina.ask("PUT", own, {**doc, "type": "x"}).status == 403
        assert gina.ask("PUT", own, {**doc, "color": "red"}).status == 201
        bulk = gina.ask("POST", "/_users/_bulk_docs", {"docs": [{**hugo, "a": 1}]})
        assert bulk.json[0]["error"] in ("forbidden", "not_found")
        copied = gina.ask("COPY", own, None, {"destination": "org.couchdb.user:copy"})
        assert copied.status in (403, 404)
    assert admin.ask("GET", other).json == hugo
    assert log_in(admin, "hugo", "secret").status == 200


def test_a_user_cannot_graft_or_purge_another(guarded: Running, admin: Wire) -> None:
    rev = sign_up(admin, "igor")
    sign_up(admin, "jane")
    forged = {
        "_id": "org.couchdb.user:igor", "_rev": "9-a", "name": "igor", "type": "user",
        "roles": ["staff"], "password": "stolen",
    }  # fmt: skip
    with wired(guarded, "jane:secret") as jane:
        answer = jane.ask("PUT", "/_users/org.couchdb.user:igor?new_edits=false", forged)
        assert answer.status in (403, 404)
        answer = jane.ask("POST", "/_users/_bulk_docs", {"docs": [forged], "new_edits": False})
        assert answer.json[0]["error"] in ("forbidden", "not_found")
        own = {**forged, "_id": "org.couchdb.user:jane", "name": "jane"}
        answer = jane.ask("PUT", "/_users/org.couchdb.user:jane?new_edits=false", own)
        assert answer.status == 403
        purge = {"org.couchdb.user:igor": [rev]}
        assert jane.ask("POST", "/_users/_purge", purge).status == 401
        assert jane.ask("PUT", "/_users/_design/x", {}).status == 403
        assert jane.ask("PUT", "/_users/_security", {}).status == 403
    assert log_in(admin, "igor", "secret").status == 200


def test_what_a_user_document_must_look_like(admin: Wire) -> None:
    base: dict[str, Any] = {"type": "user", "name": "kurt", "roles": [], "password": "secret"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"type": "x"}, "doc.type must be user"),
        ({"name": None}, "doc.name is required"),
        ({"roles": None}, "doc.roles must exist"),
        ({"roles": "x"}, "doc.roles must be an array"),
        ({"roles": [1]}, "doc.roles can only contain strings"),
        ({"name": "other"}, "Doc ID must be of the form org.couchdb.user:name"),
        ({"roles": ["_admin"]}, "No system roles (starting with underscore) in users db."),
    ]
    for change, reason in cases:
        answer = admin.ask("PUT", "/_users/org.couchdb.user:kurt", {**base, **change})
        assert answer.error == (403, "forbidden", reason), change
    assert admin.ask("GET", "/_users/org.couchdb.user:kurt").status == 404


def test_a_new_password_ends_the_old_one_and_its_cookies_at_once(
    guarded: Running, admin: Wire, nobody: Wire
) -> None:
    sign_up(admin, "lena", "before")
    path = "/_users/org.couchdb.user:lena"
    header = {"authorization": basic("lena:before")}
    with wired(guarded, "lena:before") as lena:
        cookie = cookie_of(log_in(lena, "lena", "before"))
        assert name_of(nobody, cookie) == "lena"
        for _ in range(3):
            assert name_of(nobody, header) == "lena"
        doc = lena.ask("GET", path).json
        assert lena.ask("PUT", path, {**doc, "password": "after"}).status == 201
    assert nobody.ask("GET", "/_session", None, header).error == WRONG
    assert name_of(nobody, cookie) is None
    assert name_of(nobody, {"authorization": basic("lena:after")}) == "lena"
    assert log_in(nobody, "lena", "before").error == WRONG
    assert log_in(nobody, "lena", "after").status == 200


def test_a_deleted_user_is_out_at_once(guarded: Running, admin: Wire, nobody: Wire) -> None:
    rev = sign_up(admin, "mona")
    header = {"authorization": basic("mona:secret")}
    cookie = cookie_of(log_in(nobody, "mona", "secret"))
    assert name_of(nobody, header) == name_of(nobody, cookie) == "mona"
    assert admin.ask("DELETE", f"/_users/org.couchdb.user:mona?rev={rev}").status == 200
    assert nobody.ask("GET", "/_session", None, header).error == WRONG
    assert name_of(nobody, cookie) is None


def test_new_roles_hold_at_once(guarded: Running, admin: Wire) -> None:
    sign_up(admin, "nils")
    admin.ask("PUT", "/staff")
    admin.ask("PUT", "/staff/_security", {"members": {"roles": ["staff"]}})
    path = "/_users/org.couchdb.user:nils"
    with wired(guarded, "nils:secret") as nils:
        assert nils.ask("GET", "/staff").status == 403
        doc = admin.ask("GET", path).json
        doc["_rev"] = admin.ask("PUT", path, {**doc, "roles": ["staff"]}).json["rev"]
        assert nils.ask("GET", "/staff").status == 200
        assert admin.ask("PUT", path, {**doc, "roles": []}).status == 201
        assert nils.ask("GET", "/staff").status == 403


def test_names_and_passwords_may_be_any_text(admin: Wire, nobody: Wire) -> None:
    for name, password in [("ö", "ü"), ("a b", "c d"), ("x", "a:b:c"), ("𝄞", "%2F+&=")]:
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
        doc = {"type": "user", "name": name, "roles": [], "password": password}
        assert admin.ask("PUT", f"/_users/org.couchdb.user:{quoted}", doc).status == 201
        assert log_in(nobody, name, password).status == 200
        assert name_of(nobody, {"authorization": basic(f"{name}:{password}")}) == name


# --- admins


def test_an_admin_added_by_config_is_one_at_once_until_removed(
    guarded: Running, admin: Wire, nobody: Wire
) -> None:
    header = {"authorization": basic("olga:secret")}
    assert nobody.ask("GET", "/_all_dbs", None, header).error == WRONG
    assert admin.ask("PUT", f"{CONFIG}/admins/olga", "secret").json == ""
    stored = admin.ask("GET", f"{CONFIG}/admins/olga").json
    assert re.fullmatch(r"-pbkdf2:sha256-[0-9a-f]{64},[0-9a-f]{32},10", stored)
    assert nobody.ask("GET", "/_all_dbs", None, header).status == 200
    cookie = cookie_of(log_in(nobody, "olga", "secret"))
    assert nobody.ask("GET", "/_all_dbs", None, cookie).status == 200
    assert admin.ask("DELETE", f"{CONFIG}/admins/olga").json == stored
    assert nobody.ask("GET", "/_all_dbs", None, header).error == WRONG
    assert nobody.ask("GET", "/_all_dbs", None, cookie).error == NO_LOGIN


def test_config_is_for_server_admins(guarded: Running, admin: Wire) -> None:
    sign_up(admin, "paul", roles=["staff"])
    refused = (401, "unauthorized", "You are not a server admin.")
    with wired(guarded, "paul:secret") as paul:
        for method, path in [
            ("GET", CONFIG),
            ("GET", f"{CONFIG}/admins"),
            ("GET", f"{CONFIG}/chttpd_auth/secret"),
            ("PUT", f"{CONFIG}/admins/paul"),
            ("DELETE", f"{CONFIG}/chttpd_auth/secret"),
            ("POST", f"{CONFIG}/_reload"),
            ("GET", "/_node/_local"),
            ("GET", "/_active_tasks"),
            ("GET", "/_all_dbs"),
            ("GET", "/_dbs_info"),
            ("POST", "/_dbs_info"),
            ("PUT", "/pauls"),
        ]:
            assert paul.ask(method, path, "x").error == refused, (method, path)
        for name in ("_stats", "_system", "_prometheus"):
            answer = paul.ask("GET", f"/_node/_local/{name}")
            reason = "You are not a server admin or read-only metrics user"
            assert answer.error == (401, "unauthorized", reason), name
        assert paul.ask("GET", "/_membership").status == 200
        assert paul.ask("GET", "/_uuids").status == 200


# --- _security on every route

DATABASE_ROUTES = sorted(
    (template, method)
    for table in TABLES
    for template, methods in table
    for method in {*methods, *(["HEAD"] if "GET" in methods else [])}
    if template.startswith("/{db}")
)
SECRET = "the secret of the database"


@pytest.fixture(scope="module")
def closed(guarded: Running) -> Iterator[str]:
    """A database that only `rita` is a member of and only `sven` an admin; `tom` is neither."""
    with wired(guarded) as admin:
        for name in ("rita", "sven", "tom"):
            sign_up(admin, name)
        admin.ask("PUT", "/closed")
        security = {"members": {"names": ["rita"]}, "admins": {"names": ["sven"]}}
        assert admin.ask("PUT", "/closed/_security", security).status == 200
        atts = {
            "x": {"data": base64.b64encode(SECRET.encode()).decode(), "content_type": "image/x"}
        }
        for doc_id in ("x", "_design/x"):
            doc = {"_id": doc_id, "secret": SECRET, "_attachments": atts}
            assert admin.ask("PUT", f"/closed/{doc_id}", doc).status == 201
        assert admin.ask("PUT", "/closed/_local/x", {"secret": SECRET}).status == 201
    yield "/closed"


def _whole(node: Running) -> tuple[Any, ...]:
    with wired(node) as admin:
        changes = admin.ask("GET", "/closed/_changes?include_docs=true").json["results"]
        return (
            # Not the sequences: they speak of settings that were written meanwhile, too.
            [(change["id"], change["changes"], change["doc"]) for change in changes],
            admin.ask("GET", "/closed/_local_docs?include_docs=true").json,
            admin.ask("GET", "/closed/_security").json,
            admin.ask("GET", "/closed/_revs_limit").json,
        )


EVERY_BODY: dict[str, Any] = {
    "docs": [{"_id": "y", "id": "x"}], "keys": ["x"], "queries": [{}], "x": ["1-a"],
    "selector": {}, "doc_ids": ["x"],
}  # fmt: skip
EVERY_HEADER = {"content-type": "application/json", "destination": "y", "if-match": "1-a"}
EVERY_PARAMETER = "?include_docs=true&attachments=true&open_revs=all&new_edits=false"


def ask_route(wire: Wire, db: str, template: str, method: str, query: str = "") -> Answer:
    """A request that the route would answer to a member."""
    path = re.sub(r"{\w+(:path)?}", "x", template.replace("/{db}", db))
    body = None if method == "HEAD" else EVERY_BODY
    return wire.ask(method, path + query, body, EVERY_HEADER)


@pytest.mark.parametrize(("template", "method"), DATABASE_ROUTES)
def test_who_is_no_member_gets_no_answer_from_any_route(
    guarded: Running, closed: str, template: str, method: str
) -> None:
    """403, or the 401 that CouchDB gives to some; and nothing is changed."""
    before = _whole(guarded)
    with wired(guarded, "tom:secret") as tom:
        for query in ("", EVERY_PARAMETER, "/" if template == "/{db}" else ""):
            answer = ask_route(tom, closed, template, method, query)
            assert answer.status in (401, 403), answer
            assert SECRET.encode() not in answer.body
            assert "etag" not in answer.headers
    assert _whole(guarded) == before


def test_nobody_gets_no_answer_from_any_route_of_a_closed_database(
    guarded: Running, closed: str
) -> None:
    before = _whole(guarded)
    with wired(guarded) as admin, wired(guarded, "") as nobody:
        with setting(admin, "chttpd/require_valid_user", "false"):
            for template, method in DATABASE_ROUTES:
                for query in ("", EVERY_PARAMETER):
                    answer = ask_route(nobody, closed, template, method, query)
                    assert answer.status == 401, (template, method, answer)
                    assert SECRET.encode() not in answer.body
    assert _whole(guarded) == before


def test_the_lane_keeps_those_out_who_are_no_members(guarded: Running, closed: str) -> None:
    with wired(guarded, "tom:secret") as tom:
        for _ in range(3):  # the first login goes the long way
            for method, body in ("GET", None), ("HEAD", None), ("PUT", {"n": 1}):
                assert tom.ask(method, f"{closed}/x", body).status == 403
    with wired(guarded, "rita:secret") as rita, wired(guarded) as admin:
        assert rita.ask("GET", f"{closed}/x").json["secret"] == SECRET
        assert rita.ask("GET", f"{closed}/x").status == 200
        security = admin.ask("GET", f"{closed}/_security").json
        admin.ask("PUT", f"{closed}/_security", {"members": {"names": ["nobody"]}})
        assert rita.ask("GET", f"{closed}/x").status == 403
        admin.ask("PUT", f"{closed}/_security", security)
        assert rita.ask("GET", f"{closed}/x").status == 200


def test_members_read_and_write_and_only_admins_rule(guarded: Running, closed: str) -> None:
    refused = (403, "forbidden", "You are not a db or server admin.")
    with wired(guarded, "rita:secret") as rita:
        assert rita.ask("GET", f"{closed}/_all_docs").status == 200
        assert rita.ask("GET", f"{closed}/_design/x").status == 200
        assert rita.ask("GET", f"{closed}/_security").status == 200
        assert rita.ask("PUT", f"{closed}/ritas", {}).status == 201
        assert rita.ask("PUT", f"{closed}/_local/ritas", {}).status == 201
        ruling: list[tuple[str, str, Any]] = [
            ("PUT", "_design/y", {}),
            ("PUT", "_security", {}),
            ("PUT", "_revs_limit", 7),
            ("PUT", "_design/y/att", {}),
        ]
        for method, path, body in ruling:
            assert rita.ask(method, f"{closed}/{path}", body).error == refused, path
        for method, path, sent in [
            ("PUT", "_purged_infos_limit", 7), ("POST", "_purge", {}), ("POST", "_compact", {}),
        ]:  # fmt: skip
            assert rita.ask(method, f"{closed}/{path}", sent).status == 401, path
        assert rita.ask("DELETE", closed).status == 401
        rev = rita.ask("GET", f"{closed}/_design/x").json["_rev"]
        assert rita.ask("DELETE", f"{closed}/_design/x?rev={rev}").error == refused
        assert rita.ask("DELETE", f"{closed}/_design/x/x?rev={rev}").error == refused
        copy = {"destination": "_design/copy"}
        assert rita.ask("COPY", f"{closed}/x", None, copy).error == refused
        docs = [{"_id": "_design/y"}, {"_id": "ritas2"}]
        for new_edits in (True, False):
            sent = docs if new_edits else [{**doc, "_rev": "1-a"} for doc in docs]
            body = {"docs": sent, "new_edits": new_edits}
            rows = rita.ask("POST", f"{closed}/_bulk_docs", body).json
            assert rows[0]["error"] == "forbidden"
        assert rita.ask("POST", closed, {"_id": "_design/y"}).error == refused
    with wired(guarded, "sven:secret") as sven:
        assert sven.ask("PUT", f"{closed}/_design/y", {}).status == 201
        assert sven.ask("PUT", f"{closed}/_revs_limit", 999).status == 200
        assert sven.ask("POST", f"{closed}/_compact", {}).status == 202
        assert sven.ask("DELETE", closed).status == 401
        assert sven.ask("PUT", "/svens").status == 401


def test_a_new_database_is_for_server_admins_only(guarded: Running, admin: Wire) -> None:
    sign_up(admin, "uwe")
    admin.ask("PUT", "/fresh")
    assert admin.ask("GET", "/fresh/_security").json == {
        "members": {"roles": ["_admin"]},
        "admins": {"roles": ["_admin"]},
    }
    with wired(guarded, "uwe:secret") as uwe:
        refused = (403, "forbidden", "You are not allowed to access this db.")
        assert uwe.ask("GET", "/fresh").error == refused
        admin.ask("PUT", "/fresh/_security", {})
        assert uwe.ask("GET", "/fresh").status == 200


def test_a_feed_ends_for_who_is_no_longer_a_member(guarded: Running, admin: Wire) -> None:
    """What changes after the membership ended is not told."""
    sign_up(admin, "vera")
    admin.ask("PUT", "/followed")
    admin.ask("PUT", "/followed/_security", {"members": {"names": ["vera"]}})
    with wired(guarded, "vera:secret") as vera:
        vera.send(vera.request("GET", "/followed/_changes?feed=continuous&heartbeat=200"))
        feed = vera.begin()
        assert feed.status == 200
        admin.ask("PUT", "/followed/before", {})
        line = b""
        while b'"before"' not in line:
            line = feed.readline()
        admin.ask("PUT", "/followed/_security", {"members": {"names": ["nobody"]}})
        admin.ask("PUT", "/followed/after", {})
        rest = b""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and (line := feed.readline()):
            rest += line
        assert b'"after"' not in rest


# --- throttling


def test_five_wrong_passwords_lock_an_account_for_that_address_only(
    guarded: Running, admin: Wire
) -> None:
    sign_up(admin, "walt")
    sign_up(admin, "xena")
    with (
        wired(guarded, "", LOCALHOST) as here,
        wired(guarded, "", ELSEWHERE) as there,
        wired(guarded, "walt:secret", ELSEWHERE) as walt,
    ):
        for number in range(5):
            assert log_in(here, "walt", f"wrong{number}").error == WRONG
        assert log_in(here, "walt", "secret").error == LOCKED
        assert log_in(here, "walt", "wrong").error == LOCKED
        header = {"authorization": basic("walt:secret")}
        assert here.ask("GET", "/_session", None, header).error == LOCKED
        assert log_in(there, "walt", "secret").status == 200
        assert name_of(walt) == "walt"
        assert log_in(here, "xena", "secret").status == 200
        assert name_of(here) is None
        rev = admin.ask("GET", "/_users/org.couchdb.user:walt").json["_rev"]
        doc = {"type": "user", "name": "walt", "roles": [], "password": "new", "_rev": rev}
        assert admin.ask("PUT", "/_users/org.couchdb.user:walt", doc).status == 201
        assert log_in(there, "walt", "new").status == 200


def test_basic_headers_count_like_logins_and_lock_what_was_known(
    guarded: Running, admin: Wire
) -> None:
    """Also a header that was found right before, in the lane too: else guesses could go on."""
    sign_up(admin, "yves")
    admin.ask("PUT", "/yves")
    admin.ask("PUT", "/yves/_security", {"members": {"names": ["yves"]}})
    admin.ask("PUT", "/yves/doc", {})
    with wired(guarded, "yves:secret") as yves, wired(guarded, "") as guesser:
        assert yves.ask("GET", "/yves/doc").status == 200
        for number in range(5):
            wrong = {"authorization": basic(f"yves:wrong{number}")}
            assert guesser.ask("GET", "/_session", None, wrong).error == WRONG
        assert yves.ask("GET", "/yves/doc").error == LOCKED
        assert yves.ask("GET", "/yves/doc", None, {"x-other": "way"}).error == LOCKED


def test_unknown_accounts_are_locked_like_known_ones(nobody: Wire) -> None:
    for _ in range(5):
        assert log_in(nobody, "who is this", "x").error == WRONG
    assert log_in(nobody, "who is this", "x").error == LOCKED


def test_a_right_password_forgets_the_wrong_ones(admin: Wire, nobody: Wire) -> None:
    sign_up(admin, "zoe")
    for _ in range(3):
        for _ in range(4):
            assert log_in(nobody, "zoe", "wrong").error == WRONG
        assert log_in(nobody, "zoe", "secret").status == 200


# --- CORS

ORIGIN = "https://app.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "PUT",
    "access-control-request-headers": "content-type, authorization",
}


def _cors(answer: Answer) -> dict[str, str]:
    return {
        name.lower(): value
        for name, value in answer.headers.items()
        if name.lower().startswith("access-control-")
    }


def test_cors_is_off_until_it_is_configured(admin: Wire, nobody: Wire) -> None:
    assert nobody.ask("OPTIONS", "/_session", None, PREFLIGHT).status != 204
    for origin in (ORIGIN, "null"):
        assert _cors(nobody.ask("GET", "/", None, {"origin": origin})) == {}
        assert _cors(nobody.ask("OPTIONS", "/", None, {**PREFLIGHT, "origin": origin})) == {}


def test_cors_with_named_origins(admin: Wire, nobody: Wire) -> None:
    with (
        setting(admin, "chttpd/enable_cors", "true"),
        setting(admin, "cors/origins", f"https://other.example, {ORIGIN}"),
        setting(admin, "cors/credentials", "true"),
    ):
        answer = nobody.ask("OPTIONS", "/db/doc", None, PREFLIGHT)
        assert answer.status == 204
        cors = _cors(answer)
        assert cors["access-control-allow-origin"] == ORIGIN
        assert cors["access-control-allow-credentials"] == "true"
        assert cors["access-control-allow-headers"] == "content-type, authorization"
        assert "PUT" in cors["access-control-allow-methods"]
        assert cors["access-control-max-age"] == "600"
        assert "etag" in cors["access-control-expose-headers"]
        for path, status in [("/", 200), ("/_all_dbs", 401), ("/_session", 200)]:
            answer = nobody.ask("GET", path, None, {"origin": ORIGIN})
            assert answer.status == status
            assert _cors(answer)["access-control-allow-origin"] == ORIGIN
            assert "etag" in _cors(answer)["access-control-expose-headers"]
            assert "Origin" in answer.headers["vary"]
        for strange in ("https://evil.example", "null", f"{ORIGIN}.evil.example"):
            assert _cors(nobody.ask("GET", "/", None, {"origin": strange})) == {}
            answer = nobody.ask("OPTIONS", "/", None, {**PREFLIGHT, "origin": strange})
            assert _cors(answer) == {}
        assert _cors(nobody.ask("GET", "/")) == {}
        unwanted = {**PREFLIGHT, "access-control-request-headers": "x-unknown"}
        assert nobody.ask("OPTIONS", "/", None, unwanted).status != 204
    assert _cors(nobody.ask("GET", "/", None, {"origin": ORIGIN})) == {}


def test_cors_with_any_origin(admin: Wire, nobody: Wire) -> None:
    admin.ask("PUT", "/crossed")
    admin.ask("PUT", "/crossed/doc", {})
    with setting(admin, "chttpd/enable_cors", "true"), setting(admin, "cors/origins", "*"):
        answer = nobody.ask("GET", "/", None, {"origin": ORIGIN})
        assert _cors(answer)["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in _cors(answer)
        answer = admin.ask("GET", "/crossed/doc", None, {"origin": ORIGIN})
        assert _cors(answer)["access-control-allow-origin"] == "*"
        with setting(admin, "cors/headers", "x-mine, x-yours"):
            wanted = {**PREFLIGHT, "access-control-request-headers": "X-Mine"}
            assert nobody.ask("OPTIONS", "/", None, wanted).status == 204
        with setting(admin, "cors/methods", "GET, HEAD"):
            assert nobody.ask("OPTIONS", "/", None, PREFLIGHT).status != 204
