"""The way of every request: CORS, who is asking, which route, and errors as CouchDB gives them.

The path is routed as it was sent, so that ``%2F`` in an id stays part of the id; handlers decode.
What the fast lane can answer never comes here.
"""

from collections.abc import Sequence
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from divandb.auth import cookies, policy
from divandb.cluster import sessions, trust
from divandb.cluster.peers import Peer
from divandb.cluster.sessions import Session
from divandb.errors import (
    BadRequest,
    DivanError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from divandb.httpd import cors, respond
from divandb.httpd.call import Call, Handler, Methods, RouteTable
from divandb.httpd.forward import BEHIND, PASSED_ON
from divandb.httpd.services import Services
from divandb.httpd.standing import FORWARDED, Standing, View
from divandb.replication.inside import ACTING

STATUS = "/_divan/status"
"""What a node that was removed still answers."""


class App:
    """The ASGI application."""

    def __init__(self, services: Services, tables: list[RouteTable]) -> None:
        self._services = services
        self._router = Router(
            [Route(path, _Endpoint(methods)) for path, methods in _by_path(tables).items()],
            redirect_slashes=False,
            default=_unknown,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        extra = cors.headers_for(self._services.settings, headers.get("origin"))
        answering = _Answering(send, extra, scope, self._services.standing)
        try:
            await self._answer(scope, receive, send, headers, answering)
        except DivanError as refusal:
            await self._refuse(refusal, scope, receive, answering)
        except Exception as fault:  # a bug of ours: the client hears of it, the log has the rest
            if answering.begun:
                raise
            self._services.log.fault("request failed", fault, path=str(scope.get("path")))
            await self._refuse(
                DivanError("The server met an unexpected condition."), scope, receive, answering
            )

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        answering: "_Answering",
    ) -> None:
        scope["path"] = path_of(scope)
        if scope["path"] != STATUS:
            self._services.peers.check_removed()
        if scope["method"] == "OPTIONS":
            answer = cors.preflight(self._services.settings, headers)
            if answer is not None:
                await answer(scope, receive, send)  # it has its own headers
                return
        pairs = _cookies(headers)
        cookie = next((value.strip('"') for name, value in pairs if name == cookies.NAME), None)
        authorization = headers.get("authorization")
        if authorization is not None and authorization.startswith(trust.SCHEME):
            await self._answer_peer(scope, receive, authorization, answering)
            return
        authenticator = self._services.authenticator
        user = scope.get(ACTING) or await authenticator.identify(
            authorization.encode("latin-1") if authorization else None,
            cookie,
            (scope.get("client") or ("",))[0],
        )
        if ACTING not in scope and self._services.settings.is_on("chttpd", "require_valid_user"):
            policy.check_valid_user(user, scope["path"].split("/", 2)[1])
        if user.handler == "cookie" and cookie:
            renewed = authenticator.renewed_cookie(cookie, secure=scope["scheme"] == "https")
            if renewed is not None:
                answering.extra = {**answering.extra, "set-cookie": renewed}
        answering.wants_token = sessions.HEADER in headers
        session = self._services.standing.session(scope, headers, pairs)
        scope["divan.services"] = self._services
        scope["divan.user"] = user
        scope["divan.session"] = answering.session = session
        better = await self._better(scope, session, headers, answering)
        if better is not None:
            response = await self._services.forwarder.send(
                Request(scope, receive), scope["path"], better
            )
            if response is not None:
                scope[PASSED_ON] = True
                await response(scope, receive, answering.send)
                return
            # It died a moment ago: what is here is the best that there is.
            if not self._services.progress.contains(session.needs.vector):
                answering.extra = {**answering.extra, BEHIND: "true"}
        answering.view = self._services.standing.view()
        await self._router(scope, receive, answering.send)

    async def _answer_peer(
        self, scope: Scope, receive: Receive, authorization: str, answering: "_Answering"
    ) -> None:
        """A request of another node: it is nobody but to the routes for nodes."""
        holder = trust.holder(self._services.peers.tenure.keys, authorization)
        if holder is None:
            raise Unauthorized("This is no credential of this cluster.")
        self._services.peers.check_member(holder[0])
        scope["divan.services"] = self._services
        scope["divan.user"] = policy.ANONYMOUS
        scope["divan.session"] = Session()
        scope["divan.peer"] = holder
        if not scope["path"].startswith("/_divan/"):
            raise Forbidden("Nodes have no business here.")
        await self._router(scope, receive, answering.send)

    async def _better(
        self, scope: Scope, session: Session, headers: Headers, answering: "_Answering"
    ) -> Peer | None:
        """Whoever should answer instead of this node; ``None``: it does."""
        services = self._services
        if services.standing.is_alone:
            return None
        is_passed_on = FORWARDED in headers
        needs = session.needs.vector
        if not services.progress.contains(needs) and not self._is_write_of_documents(scope):
            slots = sorted(set(session.needs.slots.values()))
            holder = services.peers.having(needs, slots) if not is_passed_on else None
            wait_s = services.limits.session_wait_ms / 1000
            # If nobody has it, waiting helps only as long as it may still be on the board.
            if not await services.progress.reach(needs, wait_s if holder else wait_s / 2):
                if holder is not None:
                    # It may have gone while it was waited for.
                    holder = services.peers.having(needs, slots)
                if holder is None:
                    answering.extra = {**answering.extra, BEHIND: "true"}
                return holder
        if not is_passed_on and not services.standing.is_young(headers):
            return next((p for p in services.peers.writers() if services.peers.is_live(p)), None)
        return None

    def _is_write_of_documents(self, scope: Scope) -> bool:
        """Its entry waits for what is needed here, which is mostly nothing, its master for the
        rest.
        """
        _, database, *below = scope["path"].split("/")
        is_one = scope["method"] == "PUT" and len(below) == 1 and below[0][:1] != "_"
        is_new = scope["method"] == "POST" and below in ([], ["_bulk_docs"])
        if not (is_one or is_new):
            return False
        known = self._services.catalog.find(unquote(database))
        return known is not None and policy.is_member(known.security, scope["divan.user"])

    async def _refuse(
        self, refusal: DivanError, scope: Scope, receive: Receive, answering: "_Answering"
    ) -> None:
        if answering.begun:
            # Half an answer is out: closing the connection is the only way to say that it is not
            # whole.
            raise refusal
        await respond.error(refusal)(scope, receive, answering.send)


class _Answering:
    """Sends an answer with headers that every answer of this request carries."""

    def __init__(self, send: Send, extra: dict[str, str], scope: Scope, standing: Standing) -> None:
        self._send = send
        self._scope = scope
        self._standing = standing
        self.extra = extra
        self.session = Session()
        self.wants_token = False
        self.begun = False
        self.view: View | None = None
        """That from which the answer began to be made."""

    async def send(self, message: Message) -> None:
        """Pass a message on, adding the headers to the first."""
        if message["type"] == "http.response.start":
            self.begun = True
            said = list(self.extra.items())
            if PASSED_ON in self._scope:
                there = {name for name, _ in message["headers"]}
                said = [(name, value) for name, value in said if name.encode() not in there]
            else:
                self._standing.note(self._scope, self.session)
                said += self._standing.age_of(self.view or self._standing.view())
                said += self._standing.said(self.session, wants_token=self.wants_token)
            added = [(name.encode(), value.encode("latin-1")) for name, value in said]
            message["headers"] = [*message["headers"], *added]
        await self._send(message)


def path_of(scope: Scope) -> str:
    """The path as it was sent, without the query; ``/db/`` is ``/db``."""
    raw = scope.get("raw_path") or scope["path"].encode()
    try:
        path: str = raw.split(b"?", 1)[0].decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("The path must be percent-encoded.") from None
    if path[:1] != "/":
        raise BadRequest("The path must begin with a slash.")
    return path[:-1] if path.count("/") == 2 and path[-1] == "/" else path


def _cookies(headers: Headers) -> list[tuple[str, str]]:
    """(name, value) of every cookie."""
    line = headers.get("cookie")
    return [] if line is None else cookies.pairs(line)


def _by_path(tables: Sequence[RouteTable]) -> dict[str, dict[str, Handler]]:
    """All routes in order; a path that stands in several tables has the methods of all."""
    paths: dict[str, dict[str, Handler]] = {}
    for table in tables:
        for path, methods in table:
            paths.setdefault(path, {}).update(methods)
    return paths


class _Endpoint:
    """One path: a handler for each method."""

    def __init__(self, methods: Methods) -> None:
        self._methods = dict(methods)
        if "GET" in self._methods:
            self._methods.setdefault("HEAD", self._methods["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._methods.get(scope["method"])
        if handler is None:
            allowed = ",".join(sorted(self._methods))
            raise MethodNotAllowed(f"Only {allowed} allowed", headers={"allow": allowed})
        request = Request(scope, receive)
        session = scope["divan.session"]
        call = Call(request, scope["divan.services"], scope["divan.user"], session)
        response = await handler(call)
        await response(scope, receive, send if scope["method"] != "HEAD" else _without_body(send))


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {
                "type": "http.response.body",
                "body": b"",
                "more_body": message.get("more_body", False),
            }
        await send(message)

    return send_head


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound("missing")
