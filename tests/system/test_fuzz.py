"""Whatever is sent, the answer is no 5xx, an error has CouchDB's shape, and the node lives on.

`make test` always tries the same examples. ``DIVANDB_FUZZ_EXAMPLES=20000`` tries so many new ones.
"""

import contextlib
import gzip
import http.client
import json
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divandb.server import TABLES
from tests.running import Running, basic, running
from tests.system.wire import ELSEWHERE, Wire, faults, request, wired

EXAMPLES = int(os.environ.get("DIVANDB_FUZZ_EXAMPLES", "0"))
RAW_SILENCE_S = 0.05
PROFILE = settings(
    max_examples=EXAMPLES or 1500,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LONG = pytest.mark.timeout_s(max(400, EXAMPLES))
"""The longest takes 25 s by itself, and took 160 s on two cores that three others wanted."""
SMALL = {
    "BODY_BYTES_MAX": "300000",
    "DOCUMENT_BYTES_MAX": "100000",
    "ATTACHMENT_BYTES_MAX": "200000",
    "INLINE_ATTACHMENT_BYTES_MAX": "20000",
    "FEED_TIMEOUT_MS_MAX": "30",
    "BULK_DOCS_MAX": "50",
}
"""Bounds that a small request can reach."""


class Known:
    """What earlier answers gave: put in for ``@rev@`` and ``@seq@`` in later requests."""

    def __init__(self) -> None:
        self.revs: deque[str] = deque(["1-967a00dff5e02add41819138abb3284d"], maxlen=4)
        self.seq = "0"

    def learn(self, body: bytes) -> None:
        self.revs.extend(
            re.findall(r'"rev":"([0-9]+-[0-9a-f]{32})"', body.decode("utf-8", "replace"))
        )
        found = re.search(rb'"(?:update_seq|last_seq)":"([^"]+)"', body)
        if found:
            self.seq = found[1].decode()

    def fill(self, data: bytes) -> bytes:
        revs = list(self.revs)
        data = re.sub(rb"@rev([0-9])@", lambda m: revs[-1 - int(m[1]) % len(revs)].encode(), data)
        return data.replace(b"@seq@", self.seq.encode())


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node of its own: these requests change settings and drop databases."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in SMALL.items():
                environment.setenv(f"DIVANDB_{name}", value)
            node = stack.enter_context(running(tmp_path_factory.mktemp("fuzzed")))
        node.request("PUT", "/_node/_local/_config/chttpd_auth/iterations", "10")
        yield node


# --- what is sent

WORDS = ["a", "b", "x", "doc", "att", "name", "é€𝄞", "", "a/b", "..", "_foo", "_id"]
DOC_IDS = [*WORDS, "_design/x", "_local/x", "org.couchdb.user:u", "_design/", "a" * 8000]
REVS = ["@rev0@", "@rev1@", "@rev2@", "1-a", "1-" + "0" * 32, "0-1", "x", "-", "9" * 30 + "-a", "",
        "-1-a", "1-é", "2-" + "f" * 33, "1-a\r\nx: y", '1-"'
]  # fmt: skip
NUMBERS = ["0", "1", "2", "-1", "10", "99999999999999999999", "1.5", "1e3", "NaN", "٣", "0x1", "+1"]

numbers = st.integers() | st.floats() | st.sampled_from([2**53, 2**63, 2**64, 10**400, 1e308])
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

scalars = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(WORDS)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
values |= st.just(DEEP)
revs = st.sampled_from(REVS)
doc_ids = st.sampled_from(DOC_IDS)


def sometimes(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is right, now and then any JSON."""
    return st.one_of(strategy, strategy, strategy, strategy, values)


def members(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[Any]:
    """Objects with these members, some left out, some of them odd."""
    return st.fixed_dictionaries(
        {key: sometimes(each) for key, each in (required or {}).items()},
        optional={key: sometimes(each) for key, each in optional.items()},
    )


def listed(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(sometimes(strategy), max_size=4)


attachments = st.dictionaries(
    st.sampled_from(WORDS),
    members(
        content_type=st.sampled_from(["text/plain", "image/png", "a\nb", ""]),
        data=st.sampled_from(["", "YQ==", "YQ", "!", "H4sIAAAAAAAAA0sEAEO+t+gBAAAA"]),
        stub=st.booleans(),
        follows=st.booleans(),
        length=st.integers(-1, 3),
        encoded_length=st.integers(-1, 30),
        encoding=st.just("gzip"),
        revpos=st.integers(-1, 3),
        digest=st.sampled_from(["md5-DMF1ucDxtqgxw5niaXcmYQ==", "md5-", "sha-x"]),
    ),
    max_size=2,
)
special = {
    "_id": doc_ids,
    "_rev": revs,
    "_deleted": st.booleans(),
    "_attachments": attachments,
    "_revisions": members(
        start=st.integers(-1, 5), ids=listed(st.sampled_from(["a", "b", "0" * 32, "é", ""]))
    ),
    "_conflicts": values,
    "_foo": values,
    "_local_seq": values,
}
docs = members(None, a=values, b=values, name=values, type=st.just("user"), **special)
users = members(
    {"_id": st.just("org.couchdb.user:u"), "type": st.just("user"), "name": st.just("u")},
    roles=listed(st.sampled_from(WORDS)),
    password=st.sampled_from(["p", ""]),
    password_scheme=st.sampled_from(["simple", "pbkdf2"]),
    iterations=st.integers(-1, 10),
    salt=st.text(max_size=4),
    derived_key=st.text(max_size=4),
    preserve_salt=st.booleans(),
    totp=members(key=st.just("JBSWY3DP"), length=st.integers(-1, 9)),
    _rev=revs,
)
who = members(names=listed(st.sampled_from(WORDS)), roles=listed(st.sampled_from(WORDS)))
selectors = st.dictionaries(
    st.sampled_from(["a", "a.b", "$and", "$or", "$not", "$nor", "_id", "$elemMatch", "a\\.b", ""]),
    values
    | st.dictionaries(
        st.sampled_from(
            [
                "$eq",
                "$gt",
                "$in",
                "$regex",
                "$mod",
                "$size",
                "$exists",
                "$type",
                "$all",
                "$elemMatch",
                "$beginsWith",
                "$not",
                "$bad",
            ]
        ),
        values,
        max_size=2,
    ),
    max_size=3,
)
queries = members(
    keys=listed(doc_ids),
    key=doc_ids,
    startkey=doc_ids,
    endkey=doc_ids,
    start_key=values,
    limit=st.integers(-1, 3),
    skip=st.integers(-1, 3),
    descending=st.booleans(),
    include_docs=st.booleans(),
    conflicts=st.booleans(),
    attachments=st.booleans(),
    update_seq=st.booleans(),
    group_level=st.integers(-1, 2),
)
good_docs = st.fixed_dictionaries(
    {"_id": st.sampled_from(["doc", "a", "b", "x"])},
    optional={
        "_rev": st.sampled_from(["@rev0@", "@rev1@"]),
        "a": values,
        "_deleted": st.booleans(),
        "_attachments": st.just({"att": {"data": "YQ==", "content_type": "text/plain"}}),
    },
)
grafts = st.fixed_dictionaries(
    {
        "_id": st.sampled_from(["doc", "a", "b"]),
        "_revisions": st.sampled_from(
            [{"start": 2, "ids": ["a", "b"]}, {"start": 3, "ids": ["c", "b"]}]
        ),
    },
    optional={"_deleted": st.booleans(), "n": values},
)
documents = good_docs | docs | users
edits = members({"docs": listed(good_docs | docs)}, new_edits=st.booleans())
grafted = st.fixed_dictionaries({"docs": st.lists(grafts, max_size=3), "new_edits": st.just(False)})
gets = members({"docs": listed(members(id=doc_ids, rev=revs, atts_since=listed(revs)))})
filters = members({"doc_ids": listed(doc_ids)}) | members(
    {"selector": selectors}, fields=listed(st.sampled_from(["a", "a.b", "\\", ""]))
)
revs_by_id = st.dictionaries(doc_ids, sometimes(listed(revs)), max_size=3)
securities = members(admins=who, members=who, readers=who)
logins = members({"name": st.sampled_from(["admin", "u", ""])}, password=st.just("p"), token=values)
FITTING: list[tuple[str, st.SearchStrategy[Any]]] = [
    ("_bulk_docs", edits | grafted),
    ("_bulk_get", gets),
    ("queries", members({"queries": listed(queries)})),
    ("_docs", queries),
    ("_changes", filters),
    ("_diff|_missing|_purge$", revs_by_id),
    ("_security", securities),
    ("_limit", st.integers(-1, 10)),
    ("_session", logins),
    ("_config", st.text(max_size=5)),
    ("_dbs_info", members({"keys": listed(doc_ids)})),
    ("{doc}|{ddoc}|{local}|{db}$", documents),
]
"""What bodies the routes that match want."""
objects = st.one_of(*[strategy for _, strategy in FITTING], values)


def fitting(template: str) -> st.SearchStrategy[bytes]:
    """A body as the route wants it, nearly."""
    found = (strategy for pattern, strategy in FITTING if re.search(pattern, template))
    return next(found, objects).map(lambda value: json.dumps(value).encode())


BROKEN = [
    b"", b"{", b"[1,", b'{"a":}', b"\xff\xfe", b'{"a":"\xed\xa0\x80"}', b"nul", b'"\\ud800"',
    b"[" * 5000, b"[" * 1100 + b"]" * 1100, b'{"a":' * 300 + b"1" + b"}" * 300, b"NaN",
    b'{"a":1e999}', b'{"a":1' + b"0" * 500 + b"}", b"{} {}", b'{"a":1,"a":2}', b"\x00",
    b"\xef\xbb\xbf{}", b'{"_id":"\\u0000"}', b"name=u&password=p", b"name=%ff&password=%00",
    b"a=" + b"&a=" * 50, b" " * 400_000, b'"' + b"a" * 250_000 + b'"',
    b'{"a":"' + b"a" * 150_000 + b'"}',
]  # fmt: skip
PARTS = [
    b"--b\r\n", b"\r\n--b\r\n", b"\r\n--b--", b"--b", b"\r\n",
    b"Content-Type: application/json\r\n\r\n",
    b'{"_attachments":{"a":{"follows":true,"content_type":"text/plain","length":1}}}',
    b'{"_attachments":{"a":{"follows":true},"b":{"follows":true,"encoding":"gzip"}}}', b"a", b"{}",
    b'Content-Disposition: attachment; filename="a"\r\n', b"Content-Encoding: gzip\r\n",
    b"\r\n\r\n", b"Content-Length: 1\r\n", b"\xff: \xff\r\n\r\n", b"x" * 70_000,
    gzip.compress(b"a", mtime=0),
]  # fmt: skip
plain_bodies = objects.map(lambda value: json.dumps(value).encode())
multiparts = st.lists(st.sampled_from(PARTS), max_size=10).map(b"".join)
gzipped = plain_bodies.map(lambda body: gzip.compress(body, mtime=0))
bodies = st.one_of(
    st.none(), plain_bodies, st.sampled_from(BROKEN), multiparts, gzipped,
    st.binary(max_size=40), gzipped.map(lambda body: body[:-3]),
    st.just(gzip.compress(b"0" * 1_000_000, mtime=0)),
)  # fmt: skip

EVIL = [
    "%00", "%2F", "%2f..%2f", "..", ".", "%ff", "%ed%a0%80", "%", "%zz", "%C3%A9", "~", "*",
    "a" * 7000, "_x", "_", "_all_docs", "_design", "_local", "%5Fdesign%2Fx", "_users",
    "_replicator", "%20", ";", "&", "+", "@", "a:b", "%0d%0aX:%20y", "%F0%9D%84%9E", "$", "(", "'",
    '"', "<", "\\", "|",
]  # fmt: skip
ORDINARY = {
    "db": [*["fuzz"] * 20, "fuzz/", "fuzz2", "a%2Fb", "none", "_users", "_users", "_replicator"],
    "doc": ["doc", "doc", "doc", "a", "b", "x", "a%2Fb", "org.couchdb.user:u"],
    "ddoc": ["x", "doc"],
    "local": ["x", "doc"],
    "att": ["att", "att", "a", "a/b", "a%2Fb"],
    "node": ["_local", "m1"],
    "section": ["chttpd", "chttpd_auth", "cors", "couch_httpd_auth", "x", "admins"],
    "key": [
        "require_valid_user", "timeout", "secret", "iterations", "origins", "credentials",
        "public_fields", "same_site", "x", "u",
    ],
}  # fmt: skip
PARAMETERS: dict[str, list[str]] = {
    "rev": REVS, "open_revs": ["all", '["@rev0@"]', '["@rev0@","@rev1@","1-a"]', "[1]", "{}", "["],
    "atts_since": ['["@rev0@"]', "[]", "[1]", "x"], "doc_ids": ['["doc"]', "[1]", "x"],
    "feed": ["normal", "longpoll", "continuous", "eventsource", "live", "x"],
    "since": ["0", "now", "@seq@", "1", "x", "1-", "1-AAAA", "-1", "5-@seq@", "@seq@x"],
    "style": ["all_docs", "main_only", "x"], "filter": ["_doc_ids", "_selector", "_design", "_view",
                                                        "a/b", "x", "_x", "/"],
    "view": ["a/b", "x"], "heartbeat": ["true", "1", *NUMBERS], "timeout": NUMBERS,
    "keys": ['["doc","a"]', "[]", "[1]", "{}", "x"], "partition": ["x"], "next": ["/", "//x", "é"],
    "fail": ["/x"], "batch": ["ok", "x"], "reduce": ["true", "false"], "group": ["true"],
    "stale": ["ok"], "update": ["lazy"], "q": NUMBERS, "n": NUMBERS, "count": NUMBERS,
    **{name: ['"doc"', '"a"', "1", "null", "{}", "x", '"é"', '"\\ud800"', "[]"]
       for name in ("key", "startkey", "endkey", "start_key", "end_key", "startkey_docid")},
    **dict.fromkeys(("limit", "skip", "seq_interval", "group_level"), NUMBERS),
    **{name: ["true", "false", "x", ""]
       for name in ("descending", "include_docs", "conflicts", "deleted_conflicts", "attachments",
                    "att_encoding_info", "revs", "revs_info", "latest", "local_seq", "meta",
                    "new_edits", "update_seq", "inclusive_end", "sorted", "partitioned")},
}  # fmt: skip
HEADERS: dict[str, list[str]] = {
    "accept": [
        "*/*", "application/json", "multipart/mixed", "multipart/related", "text/html", ";q=x",
        "*/*;q=0", "é",
    ],
    "accept-encoding": ["gzip", "identity", "*;q=0", "x"],
    "if-match": ["@rev0@", '"@rev0@"', '"', "x", "*"],
    "if-none-match": ['"@rev0@"', "*", "x", '"@rev1@", "@rev0@"'],
    "range": [
        "bytes=0-0", "bytes=1-", "bytes=-1", "bytes=5-2", "bytes=0-0,1-1", "x",
        "bytes=" + "0-0," * 20, "bytes=99999999999999999999-",
    ],
    "if-range": ['"x"', "x"],
    "content-encoding": ["gzip", "gzip", "identity", "br", "", "é"],
    "content-type": [
        "application/json", "application/json", "application/json; charset=utf-8", "text/plain",
        'multipart/related; boundary="b"', "multipart/related;boundary=b", "multipart/related",
        "application/x-www-form-urlencoded", "multipart/form-data", "\x01", "é", "",
    ],
    "content-md5": ["x", "DMF1ucDxtqgxw5niaXcmYQ=="],
    "destination": [
        "b", "doc", "a%2Fb?rev=@rev0@", "http://x/y", "?rev=x", "é", "_design/y", "%ff", "",
    ],
    "cookie": [
        "AuthSession=", "AuthSession=x", "AuthSession=YTpiOmM", "AuthSession=YWRtaW46NjU6eA==", "é",
        ";;=",
    ],
    "origin": ["http://x", "null", "é"],
    "access-control-request-method": ["PUT", "x"],
    "access-control-request-headers": ["a,b"],
    "last-event-id": ["x", "@seq@", '"@seq@"'],
    "x-forwarded-for": ["1.2.3.4"],
    "host": ["", "x:y", "é"],
    "expect": ["100-continue", "x"],
    "connection": ["close", "keep-alive", "x"],
    "upgrade": ["websocket"],
    "referer": ["x"],
    "x-http-method-override": ["DELETE"],
    "x-couch-full-commit": ["true"],
}  # fmt: skip
LOGINS = [
    "Basic", "Basic !", "Basic YQ==", "basic Og==", basic("u:p"), basic("nobody:x"), basic("é:ü"),
    "Bearer x", basic("a" * 5000 + ":x"), "Basic //8=", "Negotiate", "é", "",
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "COPY", "OPTIONS", "PATCH", "TRACE"]
TEMPLATES = sorted({(path, tuple(methods)) for table in TABLES for path, methods in table})
# Most can go wrong where documents are read and written.
TEMPLATES += [each for each in TEMPLATES if each[0].startswith("/{db}/{doc}")] * 8
TEMPLATES += [each for each in TEMPLATES if re.search("_bulk|_changes|_all_docs", each[0])] * 3

segments = st.one_of(
    st.sampled_from(EVIL),
    st.text(max_size=12).map(lambda text: quote(text.encode("utf-8", "replace"), safe="")),
    st.binary(max_size=4).map(lambda data: quote(data, safe="")),
)


@st.composite
def requests(draw: Any) -> tuple[str, str, Any, list[tuple[str, str]]]:
    """Method, target, body and headers of one request."""
    template, allowed = draw(st.sampled_from(TEMPLATES))
    method = draw(st.sampled_from(allowed if draw(st.integers(0, 7)) else METHODS))
    path = re.sub(
        r"{(\w+)(?::path)?}",
        lambda m: (
            draw(st.sampled_from(ORDINARY[m[1]]) if draw(st.integers(0, 9)) else segments)
            if m[1] in ORDINARY
            else draw(segments)
        ),
        template,
    )
    names = draw(st.lists(st.sampled_from(sorted(PARAMETERS)), max_size=2))
    pairs = [
        (name, draw(st.sampled_from(PARAMETERS[name]) | st.text(max_size=5))) for name in names
    ]
    query = "&".join(f"{name}={quote(text, safe='@', errors='replace')}" for name, text in pairs)
    headers = [("content-type", "application/json")] if draw(st.integers(0, 9)) else []
    names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=2))
    headers += [(name, draw(st.sampled_from(HEADERS[name]))) for name in names]
    if method == "COPY":
        headers.append(("destination", draw(st.sampled_from(HEADERS["destination"]))))
    body = draw(fitting(template) if draw(st.integers(0, 3)) else bodies)
    return method, path + (f"?{query}" if query else ""), body, headers


# --- what is answered


class Fuzzer:
    """Sends requests and looks at the answers."""

    def __init__(self, node: Running, wire: Wire, stranger: Wire) -> None:
        self._node = node
        self._wire = wire
        self._stranger = stranger
        self._known = Known()
        self._log_place = 0

    def try_out(self, method: str, target: str, body: Any, headers: list[tuple[str, str]]) -> None:
        wire = self._stranger if any(name == "authorization" for name, _ in headers) else self._wire
        if wire is self._wire:
            headers = [*headers, ("authorization", basic(self._node.credentials))]
        data = self._known.fill(request(method, target, body, headers))
        # What stands for something may be longer than its name.
        if body is not None:
            head, _, sent = data.partition(b"\r\n\r\n")
            length = b"content-length: %d" % len(sent)
            data = re.sub(rb"content-length: \d+", length, head, count=1) + b"\r\n\r\n" + sent
        try:
            self._exchange(wire, method, target, data)
        except AssertionError as wrong:
            raise AssertionError(f"{wrong} for\n{data[:3000]!r}") from None
        except (OSError, http.client.HTTPException) as broken:
            wire.close()
            raise AssertionError(f"{broken!r} for\n{data[:3000]!r}") from None

    def _exchange(self, wire: Wire, method: str, target: str, data: bytes) -> None:
        wire.send(data)
        response = wire.begin(method)
        if b"heartbeat=" in data and response.chunked and "_changes" in target:
            wire.close()  # it may beat for ever
            body = b""
        else:
            body = response.read()
            self._known.learn(body)
            if response.will_close:
                wire.close()
        status = response.status
        assert 200 <= status < 500 or status == 501, f"{status} {body[:300]!r}"
        if status >= 400 and method != "HEAD":
            self._check_error(body)
        self._restore(body)

    def _check_error(self, body: bytes) -> None:
        error = json.loads(body)
        assert isinstance(error, dict) and set(error) == {"error", "reason"}, body
        assert all(isinstance(text, str) for text in error.values()), body

    def _restore(self, body: bytes) -> None:
        if b'"Database does not exist."' in body:
            for name in ("fuzz", "_users", "_replicator"):
                self._wire.ask(
                    "PUT", f"/{name}", headers={"authorization": basic(self._node.credentials)}
                )

    def check_node(self) -> None:
        """The node answers, and its log tells of no bug."""
        assert self._wire.ask("GET", "/_up").status == 200
        log = self._node.log.read_bytes()[self._log_place :]
        self._log_place += len(log)
        assert b"Traceback" not in log, log.decode(errors="replace")[:5000]


@pytest.fixture(scope="module")
def fuzzer(fuzzed: Running) -> Iterator[Fuzzer]:
    with wired(fuzzed, "") as wire, wired(fuzzed, "", ELSEWHERE) as stranger:
        made = Fuzzer(fuzzed, wire, stranger)
        fuzzed.request("PUT", "/fuzz")
        yield made


@LONG
@PROFILE
@given(st.lists(requests(), min_size=1, max_size=6))
def test_no_request_is_too_much(
    fuzzer: Fuzzer, sent: list[tuple[str, str, Any, list[tuple[str, str]]]]
) -> None:
    for one in sent:
        fuzzer.try_out(*one)
    fuzzer.check_node()


@LONG
@settings(PROFILE, max_examples=EXAMPLES // 4 or 150)
@given(requests(), st.sampled_from(LOGINS))
def test_no_login_is_too_much(
    fuzzer: Fuzzer, sent: tuple[str, str, Any, list[tuple[str, str]]], login: str
) -> None:
    method, target, body, headers = sent
    fuzzer.try_out(method, target, body, [*headers, ("authorization", login)])
    fuzzer.check_node()


# --- bytes that are no HTTP, or hardly

FRAGMENTS = [
    b"GET / HTTP/1.1\r\n", b"GET /fuzz/doc HTTP/1.1\r\n", b"PUT /fuzz/raw HTTP/1.1\r\n",
    b"POST /fuzz HTTP/1.1\r\n", b"POST /fuzz/_bulk_docs HTTP/1.1\r\n",
    b"GET /fuzz/_changes?feed=continuous HTTP/1.1\r\n", b"PUT /fuzz/raw/att HTTP/1.1\r\n",
    b"HEAD /fuzz HTTP/1.0\r\n", b"GET / HTTP/9.9\r\n", b"BREW / HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n", b"GET http://x/fuzz HTTP/1.1\r\n", b"CONNECT x:1 HTTP/1.1\r\n",
    b"GET /%zz HTTP/1.1\r\n", b"GET /\xff HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n", b"GET /\r\n",
    b"get / http/1.1\r\n", b"GET /fuzz#x HTTP/1.1\r\n", b"Host: x\r\n",
    b"Authorization: @login@\r\n", b"Content-Type: application/json\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 2\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
    b"Content-Length: x\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 9000000\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: chunked, x\r\n", b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"X: " + b"y" * 40_000 + b"\r\n", b"X" * 40_000,
    b"X: a\r\n b\r\n", b"X : y\r\n", b"X\r\n", b": y\r\n", b"X: \x00\r\n", b"X: \xff\r\n", b"\r\n",
    b"\r\n", b"\n", b"\r", b"{}", b'{"a":1}', b"2\r\n{}\r\n", b"0\r\n\r\n", b"-1\r\n",
    b"fffffffffffffffffff\r\n", b"x\r\n", b"2\r\n{}", b"2;x=y\r\n{}\r\n", b"0\r\nX: y\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 10,
]  # fmt: skip
ENDING = [b"", b"\r\n", b"\r\n{}", b"\r\n2\r\n{}\r\n0\r\n\r\n"]
HEAD_FRAGMENTS = [each for each in FRAGMENTS if each.endswith(b"\r\n") and b": " in each]
REQUEST_LINES = [each for each in FRAGMENTS if b"HTTP/1.1" in each]

conversations = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=10),
    st.lists(
        st.tuples(
            st.sampled_from(REQUEST_LINES),
            st.just(b"Authorization: @login@\r\nHost: x\r\n"),
            st.lists(st.sampled_from(HEAD_FRAGMENTS), max_size=3).map(b"".join),
            st.sampled_from(ENDING),
        ).map(b"".join),
        min_size=1,
        max_size=4,
    ),
)


@LONG
@settings(PROFILE, max_examples=EXAMPLES // 2 or 400)
@given(conversations, st.booleans())
def test_no_bytes_are_too_much(
    fuzzed: Running, fuzzer: Fuzzer, fragments: list[bytes], at_once: bool
) -> None:
    sent = [each.replace(b"@login@", basic(fuzzed.credentials).encode()) for each in fragments]
    with wired(fuzzed, "") as wire:
        with contextlib.suppress(ConnectionError):
            for data in [b"".join(sent)] if at_once else sent:
                wire.send(data)
        received = wire.rest(RAW_SILENCE_S)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    assert all(100 <= each < 500 or each == 501 for each in statuses), (sent, received)
    if statuses and statuses[-1] >= 400 and b"HEAD " not in b"".join(sent):
        error = json.loads(received.rpartition(b"\r\n\r\n")[2])
        assert set(error) == {"error", "reason"}, (sent, received)
    fuzzer.check_node()


def test_nothing_in_the_log_tells_of_a_bug(fuzzed: Running) -> None:
    assert faults(fuzzed) == ""
