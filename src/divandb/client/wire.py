"""Requests and answers as the core sees them: no sockets here.

The core is generators that yield what is to be done, ``Send`` or ``Rest``, and are sent what came
of it. ``aio`` and ``sync`` do it, each in its own way.
"""

import dataclasses
import enum
from collections.abc import AsyncIterable, Generator, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from divandb.client.errors import BadAnswerError

T = TypeVar("T")
Json = dict[str, Any]
Body = bytes | Iterable[bytes] | AsyncIterable[bytes] | None
"""Of a request; what is not bytes can be sent once."""

JSON_PARAMETERS = frozenset(
    {"key", "keys", "startkey", "start_key", "endkey", "end_key", "open_revs", "atts_since",
     "doc_ids"}
)  # fmt: skip


class Kind(enum.Enum):
    """Who is asked."""

    READ = enum.auto()
    """The closest replica."""
    WRITE = enum.auto()
    """The closest master."""


class Repeat(enum.Enum):
    """May it be sent again when it got no answer?"""

    ALWAYS = enum.auto()
    """It changes nothing."""
    MARKED = enum.auto()
    """It names its documents and their parents, so that the server knows a repeat: Rule 5."""
    NEVER = enum.auto()
    """Twice may not be once."""


class Wait(enum.Enum):
    """How long may the answer take?"""

    READ = enum.auto()
    WRITE = enum.auto()
    SLOW = enum.auto()
    PROBE = enum.auto()
    FEED = enum.auto()


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, whoever is asked."""

    method: str
    path: str
    """As it is sent, with the query."""
    kind: Kind = Kind.READ
    repeat: Repeat = Repeat.ALWAYS
    body: Body = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wait: Wait = Wait.READ
    streams: bool = False
    """Is the body of a good answer taken piece by piece?"""


@dataclasses.dataclass(frozen=True)
class Send:
    """Send this; the result is an ``Answer`` or a ``Fault``."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Body
    wait: Wait
    streams: bool = False


@dataclasses.dataclass(frozen=True)
class Rest:
    """Do nothing for so long."""

    s: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a node said."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    stream: Any = None
    """What a driver takes a streamed body from."""
    node: str = ""
    is_uncertain: bool = False
    """Did an earlier attempt get no answer?"""

    def json(self) -> Any:
        """The body as JSON; raises ``BadAnswerError``."""
        try:
            return orjson.loads(self.body)
        except ValueError as problem:
            raise BadAnswerError(f"The answer is no JSON: {problem}") from None


@dataclasses.dataclass(frozen=True)
class Fault:
    """There was no answer."""

    why: str
    is_sent: bool
    """May the node have had the request?"""
    is_ours: bool = False
    """Did it not even come to a connection, because ours are all in use?"""


Effect = Send | Rest
Result = Answer | Fault | None
Steps = Generator[Effect, Result, T]


def sent(effect: Send) -> Steps[Answer | Fault]:
    """Send it."""
    found = yield effect
    assert found is not None
    return found


# Paths


def segment(text: str) -> str:
    """A name or id as it stands between two slashes."""
    return quote(text, safe="")


def document(doc_id: str) -> str:
    """An id as it stands in a path."""
    prefix, slash, rest = doc_id.partition("/")
    if slash and prefix in ("_design", "_local"):
        return f"{prefix}/{segment(rest)}"
    return segment(doc_id)


def query(parameters: Mapping[str, Any]) -> str:
    """``?a=b&…``, with JSON where CouchDB wants it; ``None`` leaves a parameter out."""
    pairs = [
        f"{quote(k)}={quote(_text(k, v), safe='')}" for k, v in parameters.items() if v is not None
    ]
    return "?" + "&".join(pairs) if pairs else ""


def _text(name: str, value: Any) -> str:
    if name in JSON_PARAMETERS or isinstance(value, bool | list | dict):
        return orjson.dumps(value).decode()
    return str(value)


def json_body(value: Any) -> tuple[bytes, dict[str, str]]:
    """(body, headers)"""
    return orjson.dumps(value), {"content-type": "application/json"}
