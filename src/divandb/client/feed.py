"""`_changes`, over as many nodes and connections as it takes.

A sequence is good on every node, so a feed that breaks goes on at another one from the last change
that it read: at least once. What was read twice stands behind a later ``seq`` as well.

Pure: bytes in, changes out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from divandb.client import wire
from divandb.client.errors import BadAnswerError, NoAnswerError
from divandb.client.sender import Line
from divandb.client.wire import Json, Kind, Repeat, Request, Steps, Wait

LINE_BYTES_MAX = 128 * 2**20
"""One change, with its document."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A document has changed."""

    seq: str
    """Where to go on: the ``since`` of a later feed, at any node."""
    id: str
    revs: tuple[str, ...]
    """The winner, with ``style="all_docs"`` all leaves."""
    deleted: bool
    doc: Json | None
    """With ``include_docs``."""

    @property
    def rev(self) -> str:
        """The winner's revision."""
        return self.revs[0]


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a feed is to show."""

    since: str = "0"
    live: bool = False
    """Go on for ever, with what comes; else end with what is there."""
    include_docs: bool = False
    filter: str | None = None
    selector: Json | None = None
    doc_ids: Sequence[str] | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Others, such as ``style`` or ``conflicts``."""


class Feed:
    """One feed; it lasts longer than its connections."""

    def __init__(self, line: Line, db: str, wish: Wish) -> None:
        self._line = line
        self._db = db
        self._wish = wish
        self._buffer = bytearray()
        self._broken = 0
        """Times in a row that it broke without a change."""
        self.since = wish.since
        """Behind the last change that was read."""
        self.is_done = False

    @property
    def is_live(self) -> bool:
        """Does it go on for ever?"""
        return self._wish.live

    def _request(self, parameters: Mapping[str, Any], wait: Wait, *, streams: bool) -> Request:
        wish = self._wish
        asked: Json = {"since": self.since, **wish.parameters, **parameters}
        body: Json = {}
        if wish.include_docs:
            asked["include_docs"] = True
        if wish.filter is not None:
            asked["filter"] = wish.filter
        if wish.selector is not None:
            asked["filter"], body = "_selector", {"selector": wish.selector}
        elif wish.doc_ids is not None:
            asked["filter"], body = "_doc_ids", {"doc_ids": list(wish.doc_ids)}
        path = f"{self._db}/_changes{wire.query(asked)}"
        if not body:
            return Request("GET", path, wait=wait, streams=streams)
        data, headers = wire.json_body(body)
        return Request("POST", path, Kind.READ, Repeat.ALWAYS, data, headers, wait, streams)

    # What is there

    def page(self) -> Steps[list[Change]]:
        """The next changes; ``is_done`` when there are no more."""
        limit = self._line.sender.options.page_rows
        request = self._request({"feed": "normal", "limit": limit}, Wait.SLOW, streams=False)
        answer = yield from self._line.ask(request)
        found = answer.json()
        changes = [_change(row) for row in found["results"]]
        self.since = str(found["last_seq"])
        self.is_done = not changes or found.get("pending") == 0
        return changes

    # What comes

    def connect(self) -> Steps[tuple[Any, str]]:
        """(what a driver takes the bytes from, the node's name); raises ``ClientError``."""
        self._buffer.clear()
        beat_ms = int(self._line.sender.options.heartbeat_s * 1000)
        parameters = {"feed": "continuous", "heartbeat": beat_ms}
        answer = yield from self._line.ask(self._request(parameters, Wait.FEED, streams=True))
        return answer.stream, answer.node

    def take(self, data: bytes) -> list[Change]:
        """The changes in these bytes; raises ``BadAnswerError``."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise BadAnswerError(f"A change of more than {LINE_BYTES_MAX} bytes.")
        self._buffer = rest
        found = []
        for line in lines:
            if not line.strip():
                continue  # a heartbeat
            row = _row(bytes(line))
            if "last_seq" in row:
                self.since = str(row["last_seq"])
            else:
                found.append(_change(row))
        if found:
            self.since = found[-1].seq
            self._broken = 0
        return found

    def broke(self, node: str, why: str, *, is_fault: bool) -> float:
        """The connection is gone; how long to rest before the next one. Raises ``NoAnswerError``
        when that happens again and again.
        """
        sender, self._broken = self._line.sender, self._broken + 1
        if is_fault:
            for one in sender.nodes.all():
                if one.name == node:
                    sender.nodes.failed(one)
        if self._broken > sender.options.feed_tries_max:
            raise NoAnswerError(f"{self._db}/_changes broke {self._broken} times: {why}")
        if self._broken == 1:
            return 0.0
        options = sender.options
        return min(options.pause_s_min * 2.0**self._broken, options.pause_s_max)


def _row(line: bytes) -> Json:
    try:
        row = orjson.loads(line)
    except ValueError:
        raise BadAnswerError(f"A feed has a line that is no JSON: {line[:100]!r}") from None
    if not isinstance(row, dict) or not ("seq" in row or "last_seq" in row):
        raise BadAnswerError(f"A feed has a line that is no change: {line[:100]!r}")
    return row


def _change(row: Json) -> Change:
    return Change(
        str(row["seq"]),
        row["id"],
        tuple(one["rev"] for one in row["changes"]),
        bool(row.get("deleted", False)),
        row.get("doc"),
    )
