"""Reductions of a view's rows, a group at a time, as they are asked for.

Nothing reduced is stored. What SQL can add up exactly it does, from the numbers in the entries;
else rows are read in pages and reduced, by the functions here or by JavaScript in a worker, and
what comes of the pages of one group is reduced again.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from divandb.errors import NotImplementedHere
from divandb.mango.keys import ABOVE
from divandb.store import rows
from divandb.store.file import Connection
from divandb.store.rows import Entry, Totals
from divandb.views.design import PART_BYTES
from divandb.views.engine import Engine, Program
from divandb.views.query import Query
from divandb.views.ranges import AFTER, BEFORE, FIRST_ID, LAST_ID, Encode, Stretch, group_of
from divandb.views.reduce import (
    BUILTINS,
    Builtin,
    Row,
    builtin_of,
    overflow_reason,
    overflows,
    parts,
)

PAGE_ROWS = 1000
"""Rows of a step."""
STATES_MAX = 64
"""So many reductions of one group are reduced again."""
CALL_ROWS_MAX = 256
"""Rows that one call of a JavaScript function reduces."""
_OVERFLOW = b'{"reduce_overflow_error":'

Group = tuple[bytes, bytes]
"""(key, value) of a group, as JSON."""


class Reducer(Protocol):
    """How rows become a value. States are whatever the reducer makes of them."""

    def reduce(self, pieces: Sequence[Sequence[Row]]) -> list[Any]:
        """The state of each piece of rows."""
        ...

    def rereduce(self, pieces: Sequence[Sequence[Any]]) -> list[Any]:
        """The state of each piece of states."""
        ...

    def final(self, state: Any) -> bytes:
        """What is answered, as JSON."""
        ...

    def of_totals(self, totals: Totals) -> Any:
        """The state that SQL's totals come to; None if they do not tell it."""
        ...

    sums: str
    """What is wanted of SQL: nothing, or what ``rows.totals`` takes."""


def reducer_of(source: str, program: Program, engine: Engine, context: str) -> Reducer:
    """The reducer for a view's reduce function; ``context`` names the view in errors."""
    if not source.startswith("_"):
        return _Script(source, program, engine, context)
    name = builtin_of(source)
    if name is None:
        raise NotImplementedHere(
            f"`{source}` is not a supported reduce function.", error="invalid_design_doc"
        )
    return _Native(name, BUILTINS[name])


class _Native:
    """A function that is built in."""

    def __init__(self, name: str, builtin: Builtin) -> None:
        self._name = name
        self._builtin = builtin
        self.sums = {"_count": rows.COUNT, "_sum": rows.SUM, "_stats": rows.STATS}.get(name, "")

    def reduce(self, pieces: Sequence[Sequence[Row]]) -> list[Any]:
        return [self._builtin.reduce(piece) for piece in pieces]

    def rereduce(self, pieces: Sequence[Sequence[Any]]) -> list[Any]:
        return [self._builtin.rereduce(piece) for piece in pieces]

    def final(self, state: Any) -> bytes:
        return orjson.dumps(self._builtin.final(state))

    def of_totals(self, totals: Totals) -> Any:
        if self._name == "_count":
            return totals.rows
        if totals.numbers < totals.rows:
            return None
        if self._name == "_sum":
            return totals.sum
        return (totals.sum, totals.rows, totals.min, totals.max, totals.squares)


class _Script:
    """A JavaScript function; states are JSON."""

    sums = ""

    def __init__(self, source: str, program: Program, engine: Engine, context: str) -> None:
        self._source = source
        self._program = program
        self._engine = engine
        self._context = context

    def reduce(self, pieces: Sequence[Sequence[Row]]) -> list[bytes]:
        calls, sizes = [], []
        for piece in pieces:
            split = [parts(row.text) for row in piece]
            keys = b",".join(
                [
                    b"[%b,%b]" % (key, orjson.dumps(row.id))
                    for (key, _), row in zip(split, piece, strict=True)
                ]
            )
            values = b",".join([value for _, value in split])
            calls.append([self._source, f"[{keys.decode()}]", f"[{values.decode()}]"])
            sizes.append(len(keys) + len(values))
        return self._asked("reduce", calls, sizes)

    def rereduce(self, pieces: Sequence[Sequence[bytes]]) -> list[bytes]:
        calls, sizes, found = [], [], []
        for piece in pieces:
            values = b",".join(piece)
            calls.append([self._source, f"[{values.decode()}]"])
            sizes.append(len(values))
            found.append(next((state for state in piece if state.startswith(_OVERFLOW)), None))
        made = self._asked("rereduce", calls, sizes)
        return [error or state for error, state in zip(found, made, strict=True)]

    def final(self, state: bytes) -> bytes:
        return state

    def of_totals(self, totals: Totals) -> Any:
        return None

    def _asked(self, function: str, calls: list[list[str]], sizes: list[int]) -> list[bytes]:
        answers: list[str] = []
        while len(answers) < len(calls):
            answers += self._engine.ask(self._program, function, calls[len(answers) :], ())
        return [
            self._checked(answer[1:-1].encode(), size)
            for answer, size in zip(answers, sizes, strict=True)
        ]

    def _checked(self, state: bytes, size: int) -> bytes:
        if not overflows(size, len(state)):
            return state
        reason = f"{overflow_reason(size, len(state))} context: {self._context}"
        return orjson.dumps({"reduce_overflow_error": reason})


class _Open:
    """A group of rows, as far as it has been read."""

    def __init__(self, key: bytes, beginning: bytes, *, exact: bool) -> None:
        self.key = key
        """As JSON."""
        self._beginning = beginning
        self._exact = exact
        self.rows: list[Row] = []
        """Those that are not reduced yet."""
        self.states: list[Any] = []
        self.pages = 0
        """How many pages ended within it."""

    def takes(self, key: bytes) -> bool:
        """Is a row of this encoded key in it?"""
        return key == self._beginning if self._exact else key.startswith(self._beginning)

    def within(self, stretch: Stretch) -> Stretch:
        """What of a stretch is of the group."""
        beginning = self._beginning
        end = (beginning, LAST_ID, AFTER) if self._exact else (beginning + ABOVE, FIRST_ID, BEFORE)
        return Stretch(
            max(stretch.low, (beginning, FIRST_ID, BEFORE), key=_key),
            min(stretch.high, end, key=_key),
            stretch.descending,
        )


def _key(place: tuple[bytes, str | bytes, int]) -> bytes:
    # Where the keys are equal, ``min`` and ``max`` take the stretch's place, which comes first: it
    # is within the key, or at the same edge.
    return place[0]


class Groups:
    """One query's groups on their way: ``step`` reads, ``reduced`` gives those that are whole."""

    def __init__(
        self, built: int, parts: list[Stretch], query: Query, reducer: Reducer, encoded: Encode
    ) -> None:
        """``encoded`` is how the view keeps keys."""
        self._built = built
        self._parts = parts[::-1]
        if parts:
            self._stretch = parts[0]
            """The one that is being read, as a whole."""
        self._level = query.level
        self._skip = query.skip
        self._left = query.limit
        self._reducer = reducer
        self._encoded = encoded
        self._sums = reducer.sums
        self._open: _Open | None = None
        self._whole: list[_Open] = []

    @property
    def over(self) -> bool:
        return not self._left or not (self._parts or self._open or self._whole)

    def step(self, connection: Connection) -> None:
        """Read on."""
        if not self._parts:
            self._close()
            return
        part = self._parts[-1]
        if self._open is None and self._level == 0:
            self._open = _Open(b"null", part.low[0][:PART_BYTES], exact=False)
            self._open.pages = 1
        if self._sums and self._open is not None and self._open.pages:
            self._add_up(connection, self._open)
        else:
            self._read(connection, part)

    def _add_up(self, connection: Connection, group: _Open) -> None:
        """A group in SQL: all of it, for a range between two keys is added up faster than its rest
        behind a row.
        """
        whole = self._stretch
        within = group.within(whole)
        totals = rows.totals(connection, self._built, within.low, within.high, self._sums)
        state = self._reducer.of_totals(totals) if totals is not None and totals.rows else None
        if totals is None or (totals.rows and state is None):
            self._sums = ""
            return
        group.rows = []
        group.states = [state] if totals.rows else []
        group.pages = 0
        if (within.low is whole.low) if whole.descending else (within.high is whole.high):
            self._end_part()
        else:
            self._parts[-1] = whole.behind(within.low if whole.descending else within.high)

    def _end_part(self) -> None:
        self._parts.pop()
        self._close()
        if self._parts:
            self._stretch = self._parts[-1]

    def _read(self, connection: Connection, part: Stretch) -> None:
        found, is_more = rows.page(
            connection, self._built, part.low, part.high, PAGE_ROWS, descending=part.descending
        )
        before = self._open
        for entry in found:
            self._take(entry)
            if not self._left:
                return
        if self._open is not None:
            self._open.pages += self._open is before
        if is_more:
            self._parts[-1] = part.behind(found[-1][:3])
        else:
            self._end_part()

    def _take(self, entry: Entry) -> None:
        key, doc_id, _, number, text = entry
        if self._open is None or not self._open.takes(key):
            self._close()
            if not self._left:
                return
            self._open = self._begun(key, text)
        self._open.rows.append(Row(key[PART_BYTES:], doc_id, number, text))

    def _begun(self, key: bytes, text: bytes) -> _Open:
        if self._level is None:
            return _Open(parts(text)[0], key, exact=True)
        json = parts(text)[0]
        shown, beginning, exact = group_of(
            orjson.loads(json), key[PART_BYTES:], self._encoded, self._level
        )
        shown_json = json if exact else orjson.dumps(shown)
        return _Open(shown_json, key[:PART_BYTES] + beginning, exact=exact)

    def _close(self) -> None:
        group, self._open = self._open, None
        if group is None or not (group.rows or group.states):
            return
        if self._skip:
            self._skip -= 1
            return
        self._whole.append(group)
        self._left -= 1

    def reduced(self) -> list[Group]:
        """The groups that are whole by now; the one that is not is made small."""
        whole, self._whole = self._whole, []
        groups = [*whole, self._open] if self._open is not None else whole
        self._reduce([group for group in groups if group.rows])
        many = [group for group in whole if len(group.states) > 1]
        if self._open is not None and len(self._open.states) > STATES_MAX:
            many.append(self._open)
        if many:
            states = self._reducer.rereduce([group.states for group in many])
            for group, state in zip(many, states, strict=True):
                group.states = [state]
        return [(group.key, self._reducer.final(group.states[0])) for group in whole]

    def _reduce(self, groups: list[_Open]) -> None:
        pieces = [
            (group, group.rows[start : start + CALL_ROWS_MAX])
            for group in groups
            for start in range(0, len(group.rows), CALL_ROWS_MAX)
        ]
        if not pieces:
            return
        states = self._reducer.reduce([piece for _, piece in pieces])
        for (group, _), state in zip(pieces, states, strict=True):
            group.states.append(state)
        for group in groups:
            group.rows = []
