"""The fast lane: plain reads and writes of one document, decided and answered without a task or a
framework.

    GET, HEAD /{db}/{doc}        with a Basic header that was found right before
    PUT       /{db}/{doc}        the same, a small JSON body, no attachments

A session token may come along, if the node contains what it names. Whatever is out of
the ordinary (parameters, escapes, logins by cookie, origins, system databases, errors before the
write) gets ``None`` here and goes the normal way, which gives the same answers.
"""

from collections.abc import Callable
from typing import Any

from starlette.types import Scope

from divandb import document
from divandb.auth import policy
from divandb.auth.policy import UserContext
from divandb.catalog import Known
from divandb.cluster.sessions import Session, Token
from divandb.commands import Edit
from divandb.entry import Prepared
from divandb.errors import DivanError
from divandb.httpd import respond
from divandb.httpd.call import decode_json
from divandb.httpd.services import Services
from divandb.httpd.tokens import COOKIE, HEADER, Tokens
from divandb.replica import DELETED

Headers = list[tuple[bytes, bytes]]

BODY_BYTES_MAX = 64 * 1024
_ORDINARY = frozenset(
    {b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"connection",
     b"authorization", b"content-type", b"content-length", b"if-none-match", b"cache-control",
     b"pragma", b"cookie", b"divan-session"}
)  # fmt: skip
_JSON_TAIL = b"cache-control: must-revalidate\r\ncontent-type: application/json\r\n"


class Lane:
    """Answers what it can; ``None`` sends a request the normal way."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._find = services.catalog.find
        self._winner = services.replica.winner
        self._standing = services.standing
        self._peers = services.peers
        self._contains = services.progress.contains
        self._known_header = services.authenticator.known_header
        self._tokens = Tokens(services.standing, self._contains, services.replica.hot.stamp)
        self._no_headers: object = None
        self._heads: dict[int, bytes] = {}

    def read(
        self,
        url: bytes,
        headers: Headers,
        address: str,
        common: Headers,
        token: Token | None,
        *,
        body: bool,
    ) -> bytes | None:
        """The whole answer to ``GET /{db}/{doc}`` (to HEAD without ``body``); ``token`` says what
        this connection wrote before.
        """
        if self._peers.is_removed or (token is not None and not self._contains(token.vector)):
            return None
        target = self._target(url, headers, address)
        if target is None:
            return None
        known, _, doc_id, asked = target
        if b"content-length" in asked:
            return None
        header = asked.get(HEADER)
        needs = self._tokens.met(header, asked.get(COOKIE))
        if needs is None:
            return None
        said = self._standing.age_lines()  # before it is read: it may be younger, never older
        winner = self._winner(known, doc_id)
        if winner is None or winner[1] & DELETED:
            return None
        rev, _, data = winner
        if header is not None:
            said += self._tokens.line(header, needs, token)
        tag = asked.get(b"if-none-match")
        if tag is not None:
            if tag != b'"%b"' % rev.encode():
                return None
            return (
                self._head(304, common)
                + said
                + b'cache-control: must-revalidate\r\netag: "%b"\r\n\r\n' % rev.encode()
            )
        head = b'%b%b%betag: "%b"\r\ncontent-length: %d\r\n\r\n' % (
            self._head(200, common), said, _JSON_TAIL, rev.encode(), len(data) + 1,
        )  # fmt: skip
        return b"%b%b\n" % (head, data) if body else head

    def takes_write(self, url: bytes, headers: Headers) -> bool:
        """May this PUT come here once its body is whole?"""
        if b"?" in url or b"%" in url or b"/_" in url or self._peers.is_removed:
            return False
        length = -1
        for name, value in headers:
            if name not in _ORDINARY:
                return False
            if name == b"content-length":
                length = int(value) if value.isdigit() and len(value) < 9 else -1
            elif name == b"content-type" and not value.startswith(b"application/json"):
                return False
        return 0 <= length <= BODY_BYTES_MAX

    def write(
        self,
        url: bytes,
        headers: Headers,
        address: str,
        body: bytes,
        scope: Scope,
        done: Callable[[int, Headers, bytes], None],
    ) -> bool:
        """Begin to carry out ``PUT /{db}/{doc}``; ``done`` gets status, headers and body. False:
        not here.
        """
        try:
            target = self._target(url, headers, address)
            if target is None:
                return False
            known, user, doc_id, asked = target
            prepared = self._prepared(doc_id, body)
            header = asked.get(HEADER)
            needs = self._tokens.met(header, asked.get(COOKIE))
            if prepared is None or needs is None:
                return False
            session = self._session(scope, needs)
            entry = self._services.entry.within(session)
            edit = entry.edit_of(known, prepared)

            def finish(result: Any) -> None:
                if isinstance(result, Exception) and not isinstance(result, DivanError):
                    self._services.log.fault("request failed", result, path=url.decode())
                status, headers, body = _written(known, edit, result)
                said = self._said(scope, session, wants_token=header is not None)
                done(status, headers + said, body)

            entry.begin_edit(known, user, prepared, edit, finish)
            return True
        except DivanError:
            # The normal way meets the same error, and knows how to say it.
            return False

    def _session(self, scope: Scope, needs: Token) -> Session:
        token = scope["divan.connection"].token
        if token is not None:
            needs = needs.joined(token)
        return Session(needs, self._standing.usual_concern())

    def _said(self, scope: Scope, session: Session, *, wants_token: bool) -> Headers:
        standing = self._standing
        standing.note(scope, session)
        said = standing.age() + standing.said(session, wants_token=wants_token)
        return [(name.encode(), value.encode()) for name, value in said]

    def _prepared(self, doc_id: str, body: bytes) -> Prepared | None:
        document.check_id(doc_id)
        sent = document.parse(decode_json(body))
        if sent.attachments:
            return None
        return Prepared(doc_id, sent)

    def _target(
        self, url: bytes, headers: Headers, address: str
    ) -> tuple[Known, UserContext, str, dict[bytes, bytes]] | None:
        """The database that a plain path names, the user if they may have it, the document and the
        headers.
        """
        parts = url.split(b"/")
        if (
            len(parts) != 3
            or not parts[2]
            or parts[2][0] == 95
            or b"%" in url
            or b"?" in url
            or b"#" in url
            or parts[1][:1] == b"_"
        ):
            return None
        asked = dict(headers)
        if len(asked) != len(headers) or not asked.keys() <= _ORDINARY:
            return None
        authorization = asked.get(b"authorization")
        if authorization is None:
            return None
        user = self._known_header(authorization, address)
        if user is None:
            return None
        try:
            known = self._find(parts[1].decode("ascii"))
            doc_id = parts[2].decode("ascii")
        except UnicodeDecodeError:
            return None
        if known is None or not policy.is_member(known.security, user):
            return None
        return known, user, doc_id, asked

    def _head(self, status: int, common: Headers) -> bytes:
        """The status line with the headers that all answers carry; made anew when those change."""
        if common is not self._no_headers:
            self._no_headers = common
            self._heads.clear()
        head = self._heads.get(status)
        if head is None:
            head = self._heads[status] = status_line(status) + lines(common)
        return head


def _written(known: Known, edit: Edit, result: Any) -> tuple[int, Headers, bytes]:
    if isinstance(result, Exception):
        refusal = (
            result
            if isinstance(result, DivanError)
            else DivanError("The server met an unexpected condition.")
        )
        return _of(respond.error(refusal))
    location = respond.location(known.name, edit.id)
    headers = [(b"etag", b'"%b"' % result.encode()), (b"location", location.encode())]
    return (
        201,
        headers,
        b'{"ok":true,"id":%b,"rev":"%b"}\n' % (respond.quoted(edit.id), result.encode()),
    )


def _of(answer: Any) -> tuple[int, Headers, bytes]:
    skipped = (b"content-length", b"content-type", b"cache-control")
    return (
        answer.status_code,
        [pair for pair in answer.raw_headers if pair[0] not in skipped],
        answer.body,
    )


def whole(status: int, headers: Headers, body: bytes, common: Headers) -> bytes:
    """A JSON answer as bytes."""
    return b"".join(
        (status_line(status), lines(common), _JSON_TAIL, lines(headers),
         b"content-length: %d\r\n\r\n" % len(body), body)
    )  # fmt: skip


def lines(headers: Headers) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return b"HTTP/1.1 %d %b\r\n" % (status, respond.PHRASES.get(status, b""))
