"""The way of every request: CORS, who is asking, which route, and errors as CouchDB gives them.

The path is routed as it was sent, so that ``%2F`` in an id stays part of the id; handlers decode.
What the fast lane can answer never comes here.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from divandb.auth import cookies, policy
from divandb.errors import BadRequest, DivanError, MethodNotAllowed, NotFound
from divandb.httpd import cors, respond
from divandb.httpd.call import Call, Handler, Methods, RouteTable
from divandb.httpd.services import Services


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
        answering = _Answering(send, extra)
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
        if scope["method"] == "OPTIONS":
            answer = cors.preflight(self._services.settings, headers)
            if answer is not None:
                await answer(scope, receive, send)  # it has its own headers
                return
        cookie = _session_cookie(headers)
        authorization = headers.get("authorization")
        client = scope.get("client")
        authenticator = self._services.authenticator
        user = await authenticator.identify(
            authorization.encode("latin-1") if authorization else None,
            cookie,
            client[0] if client else "",
        )
        if self._services.settings.is_on("chttpd", "require_valid_user"):
            policy.check_valid_user(user, scope["path"].split("/", 2)[1])
        if user.handler == "cookie" and cookie:
            renewed = authenticator.renewed_cookie(cookie, secure=scope["scheme"] == "https")
            if renewed is not None:
                answering.extra = {**answering.extra, "set-cookie": renewed}
        scope["divan.services"] = self._services
        scope["divan.user"] = user
        await self._router(scope, receive, answering.send)

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

    def __init__(self, send: Send, extra: dict[str, str]) -> None:
        self._send = send
        self.extra = extra
        self.begun = False

    async def send(self, message: Message) -> None:
        """Pass a message on, adding the headers to the first."""
        if message["type"] == "http.response.start":
            self.begun = True
            added = [(name.encode(), value.encode("latin-1")) for name, value in self.extra.items()]
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


def _session_cookie(headers: Headers) -> str | None:
    lines = headers.get("cookie")
    if lines is None:
        return None
    for part in lines.split(";"):
        name, _, value = part.strip().partition("=")
        if name == cookies.NAME:
            return value.strip('"')
    return None


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
        call = Call(request, scope["divan.services"], scope["divan.user"])
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
