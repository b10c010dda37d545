"""Where requests come in: what ``httpd.protocol`` does, without a connection."""

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from divandb.cluster.sessions import Token
from divandb.httpd.protocol import NOT_CLIENTS
from tests.sim.network import Exchange, Headers

if TYPE_CHECKING:
    from tests.sim.node import Node

ADDRESS = "10.0.0.1"


class Connection:
    """Each request has one of its own: nothing is known of the client but what it brings."""

    token: Token | None = None


def answer_peer(node: "Node", exchange: Exchange) -> None:
    """Answer what another node asks on the fast lane between nodes."""
    _, path, headers, body = exchange.request
    url = path.encode()
    node.requests += url not in NOT_CLIENTS
    handler = node.peer_lane.handler(url, headers)
    assert handler is not None
    handler(body, exchange.send_whole)


async def answer(node: "Node", exchange: Exchange) -> None:
    """Answer one request, on a fast lane if one takes it."""
    method, path, headers, body = exchange.request
    url = path.encode()
    node.requests += url not in NOT_CLIENTS
    if method == "GET":
        made = node.lane.read(url, headers, ADDRESS, [], None, body=True)
        if made is not None:
            exchange.send_whole(*_taken_apart(made))
            return
    scope = _scope(method, path, headers)
    is_plain = method == "PUT" and node.lane.takes_write(url, headers)
    if is_plain and node.lane.write(url, headers, ADDRESS, body, scope, exchange.send_whole):
        return
    await _through_app(node, exchange, scope)


def _taken_apart(made: bytes) -> tuple[int, Headers, bytes]:
    head, _, body = made.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    return int(first.split()[1]), headers, body


def _scope(method: str, path: str, headers: Headers) -> dict[str, Any]:
    plain, _, query = path.partition("?")
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "path": unquote(plain), "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "scheme": "http", "headers": headers,
        "client": (ADDRESS, 1), "server": ("node", 80), "state": {},
        "divan.connection": Connection(),
    }  # fmt: skip


async def _through_app(node: "Node", exchange: Exchange, scope: dict[str, Any]) -> None:
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            await exchange.gone.wait()
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": exchange.request.body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            exchange.send((message["status"], list(message["headers"])))
            return
        if message.get("body"):
            exchange.send(message["body"])
        if not message.get("more_body"):
            exchange.send(None)

    await node.app(scope, receive, send)
