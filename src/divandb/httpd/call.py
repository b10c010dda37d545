"""One request: its parameters, its body, who asks, and which database it names."""

import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from divandb.auth import policy
from divandb.auth.policy import UserContext
from divandb.catalog import Known
from divandb.cluster.sessions import Session
from divandb.entry import Entry
from divandb.errors import (
    BadRequest,
    QueryParseError,
    TooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from divandb.httpd.negotiate import is_json_content_type
from divandb.httpd.services import Services
from divandb.packing import Gunzip

_MANY_DIGITS = re.compile(rb"[0-9]{19}")
_BOOLEANS = {"true": True, "false": False}


class Call:
    """What a handler gets: the request, the services behind the node, and the user."""

    def __init__(
        self, request: Request, services: Services, user: UserContext, session: Session
    ) -> None:
        self.request = request
        self.services = services
        self.user = user
        self.session = session
        self.query: QueryParams = request.query_params

    @cached_property
    def entry(self) -> Entry:
        """Where this request's writes go in."""
        return self.services.entry.within(self.session)

    @property
    def headers(self) -> Headers:
        return self.request.headers

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def address(self) -> str:
        """The client's address, as far as the connection tells."""
        client = self.request.client
        return client.host if client else ""

    @property
    def secure(self) -> bool:
        """Did the request come over TLS?"""
        return self.request.url.scheme == "https"

    @property
    def is_ending(self) -> bool:
        """Does the node stop, or this connection after its answer?"""
        connection = self.request.scope.get("divan.connection")
        is_leaving = connection is not None and connection.is_leaving
        return self.services.stopping.is_set() or is_leaving

    def own_url(self, path: str) -> str:
        """``path`` as a URL of this server; never one of another host."""
        return "/" + path.lstrip("/\\")

    def path(self, name: str) -> str:
        """A path parameter, decoded; raises ``BadRequest`` if it is not UTF-8."""
        try:
            return unquote(self.request.path_params[name], errors="strict")
        except UnicodeDecodeError:
            raise BadRequest("The path is not valid UTF-8.") from None

    @property
    def is_from_peer(self) -> bool:
        """Does another node of the cluster ask?"""
        return "divan.peer" in self.request.scope

    def peer(self) -> tuple[str, str, str]:
        """(name, role, slot) of the node that asks; raises ``Unauthorized`` for anybody else."""
        holder: tuple[str, str, str] | None = self.request.scope.get("divan.peer")
        if holder is None:
            raise Unauthorized("This is for nodes of the cluster.")
        return holder

    # Databases

    def database(self) -> Known:
        """The database in the path, for its members; raises ``NotFound`` and refusals."""
        known = self.services.catalog.get(self.path("db"))
        policy.check_member(known.security, self.user)
        return known

    def database_as_admin(self) -> Known:
        """The database in the path, for its admins."""
        known = self.services.catalog.get(self.path("db"))
        policy.check_admin(known.security, self.user)
        return known

    # Parameters

    def flag(self, name: str, default: bool = False) -> bool:
        """``true`` or ``false``."""
        text = self.query.get(name)
        if text is None:
            return default
        return boolean(name, text)

    def number(self, name: str, default: int | None = None) -> int | None:
        """A whole number ≥ 0."""
        text = self.query.get(name)
        return default if text is None else whole(name, text)

    def json_parameter(self, name: str) -> Any:
        """A parameter that is JSON; ``None`` when it is not there."""
        text = self.query.get(name)
        return None if text is None else decode_parameter(name, text)

    # Body

    async def stream(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come, unpacked when the request is gzipped."""
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "gzip":
            gunzip = Gunzip(self.services.limits.attachment_bytes_max)
            async for data in self._raw():
                for piece in gunzip.feed(data):
                    yield piece
            gunzip.flush()
        elif encoding in ("identity", ""):
            async for data in self._raw():
                yield data
        else:
            raise UnsupportedMediaType(f"Content-Encoding {encoding} is not supported.")

    async def _raw(self) -> AsyncIterator[bytes]:
        try:
            async for data in self.request.stream():
                if data:
                    yield data
        except ClientDisconnect:
            raise BadRequest("The request ended before its body did.") from None

    async def body(self) -> bytes:
        """The whole body; raises ``TooLarge`` past ``body_bytes_max``."""
        limit = self.services.limits.body_bytes_max
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise TooLarge("the request entity is too large")
        pieces = bytearray()
        async for data in self.stream():
            pieces += data
            if len(pieces) > limit:
                raise TooLarge("the request entity is too large")
        return bytes(pieces)

    async def json(self) -> Any:
        """The body as JSON, whatever its Content-Type; raises ``BadRequest``."""
        return decode_json(await self.body())

    async def json_object(self) -> dict[str, Any]:
        """The body as a JSON object; raises ``BadRequest`` for anything else."""
        return json_object(await self.body())

    def check_json_content_type(self) -> None:
        """Raises ``UnsupportedMediaType`` unless the body is said to be JSON."""
        if not is_json_content_type(self.headers.get("content-type")):
            raise UnsupportedMediaType("Content-Type must be application/json")


def decode_json(data: bytes) -> Any:
    """Decode JSON; raises ``BadRequest`` for what is not, or is nested above 1,024 levels."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadRequest("invalid UTF-8 JSON") from None
    if _MANY_DIGITS.search(data):
        _check_numbers(data)
    return value


def json_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object; raises ``BadRequest`` for anything else."""
    value = decode_json(data)
    if not isinstance(value, dict):
        raise BadRequest("Request body must be a JSON object")
    return value


def _check_numbers(data: bytes) -> None:
    """Raises ``BadRequest`` for whole numbers beyond 64 bits, which would be stored as others."""

    def whole_number(text: str) -> int:
        number = int(text[:40])
        if not -(2**63) <= number < 2**64:
            raise BadRequest("Whole numbers beyond 64 bits are not kept: send them as strings.")
        return number

    try:
        json.loads(data, parse_int=whole_number)
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply.") from None


def encode_json(value: Any) -> bytes:
    """Encode what a client sent; raises ``BadRequest`` for more than 254 levels."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise BadRequest("The JSON is nested too deeply.") from None


def boolean(name: str, text: str) -> bool:
    """``true`` or ``false``; raises ``QueryParseError`` for anything else."""
    if text not in _BOOLEANS:
        raise QueryParseError(f"Invalid boolean parameter: {text!r} for {name}")
    return _BOOLEANS[text]


def whole(name: str, text: object) -> int:
    """A whole number ≥ 0; raises ``QueryParseError`` for anything else."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise QueryParseError(f"Invalid value for integer parameter: {text!r} for {name}")


def decode_parameter(name: str, text: str) -> Any:
    """JSON in a parameter; raises ``BadRequest``."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRequest(f"invalid UTF-8 JSON in parameter {name}") from None


def milliseconds(name: str, value: object, most: float = math.inf) -> int:
    """A time in milliseconds, at most ``most``."""
    return int(min(whole(name, value), most))


Handler = Callable[[Call], Awaitable[Response]]
Methods = Mapping[str, Handler]
RouteTable = Sequence[tuple[str, Methods]]
"""A module's routes: a path with its parts in braces, and a handler for each method."""
