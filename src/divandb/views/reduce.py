"""The reduce functions that CouchDB has built in, as it computes them.

Each takes rows to a state, states to a state, and a state to the value that is answered:
`_sum` of numbers, arrays and objects; `_count`; `_stats` of numbers and arrays of them;
`_approx_count_distinct` of keys (HyperLogLog with 2,048 registers: Flajolet et al., 2007).
"""

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import orjson

from divandb.errors import InvalidValue

SUM_ERROR: Final = (
    "The _sum function requires that map values be numbers, arrays of numbers, or objects. "
    "Objects cannot be mixed with other data structures. Objects can be arbitrarily nested, "
    "provided that the values for all fields are themselves numbers, arrays of numbers, or objects."
)
OVERFLOW_BYTES: Final = 5000
OVERFLOW_RATIO: Final = 2.0
"""What a function gives of many rows may not be above this size and more than half of theirs."""


class Row(NamedTuple):
    """A row of a view."""

    key: bytes
    """Encoded, without what says which view it is of."""
    id: str
    number: float | None
    """The value, where it is a number."""
    text: bytes
    """``"key":…,"value":…``"""

    @property
    def value(self) -> Any:
        return orjson.loads(parts(self.text)[1])


class _Parts(msgspec.Struct):
    key: msgspec.Raw
    value: msgspec.Raw


_decode_parts = msgspec.json.Decoder(_Parts).decode


def parts(text: bytes) -> tuple[bytes, bytes]:
    """Key and value of a row, as JSON."""
    found = _decode_parts(b"{%b}" % text)
    return bytes(found.key), bytes(found.value)


class Builtin(Protocol):
    """A reduce function of rows, states and, at the end, a value."""

    def reduce(self, rows: Sequence[Row]) -> Any:
        """The state of these rows, one at least."""
        ...

    def rereduce(self, states: Sequence[Any]) -> Any:
        """The state of all of them."""
        ...

    def final(self, state: Any) -> Any:
        """What is answered."""
        ...


class Count:
    """`_count`"""

    def reduce(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def rereduce(self, states: Sequence[int]) -> int:
        return sum(states)

    def final(self, state: int) -> int:
        return state


class _SumError(Exception):
    pass


class Sum:
    """`_sum`; a value that cannot be added becomes an error in the place of the sum."""

    def reduce(self, rows: Sequence[Row]) -> Any:
        numbers = [row.number for row in rows if row.number is not None]
        if len(numbers) == len(rows):
            return sum(numbers)
        size = sum([len(row.text) for row in rows])
        return self._added((row.value for row in rows), size)

    def rereduce(self, states: Sequence[Any]) -> Any:
        return self._added(states, 0 if len(states) < 2 else len(orjson.dumps(list(states))))

    def final(self, state: Any) -> Any:
        return state

    def _added(self, values: Iterable[Any], size: int) -> Any:
        total: Any = 0
        for value in values:
            if _is_error(value):
                return value
            try:
                total = _plus(total, value)
            except _SumError:
                return {"error": "builtin_reduce_error", "reason": SUM_ERROR, "caused_by": value}
        if isinstance(total, list | dict) and size:
            made = len(orjson.dumps(total))
            if overflows(size, made):
                return {"error": "builtin_reduce_error", "reason": overflow_reason(size, made)}
        return total


def overflows(size: int, made: int) -> bool:
    """Is a reduction too large for what it was made of, in bytes of JSON?"""
    return made > OVERFLOW_BYTES and made * OVERFLOW_RATIO > size


def overflow_reason(size: int, made: int) -> str:
    """CouchDB's words for it."""
    return f"Reduce output must shrink more rapidly: input size: {size} output size: {made}"


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and value.get("error") == "builtin_reduce_error"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plus(total: Any, value: Any) -> Any:
    if _is_number(value):
        if _is_number(total):
            return total + value
        if isinstance(total, list):
            return _lists(total, [value])
    elif isinstance(value, list):
        if _is_number(total):
            return _lists([total], value)
        if isinstance(total, list):
            return _lists(total, value)
    elif isinstance(value, dict):
        if isinstance(total, dict):
            return _objects(total, value)
        if _is_number(total) and total == 0:
            return value
    raise _SumError


def _lists(total: list[Any], value: list[Any]) -> list[Any]:
    if not all(map(_is_number, total)) or not all(map(_is_number, value)):
        raise _SumError
    longer, shorter = (total, value) if len(total) >= len(value) else (value, total)
    added = [one + other for one, other in zip(longer, shorter, strict=False)]
    return added + longer[len(shorter) :]


def _objects(total: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    added = dict(total)
    for name, one in value.items():
        added[name] = _plus(added[name], one) if name in added else one
    return dict(sorted(added.items()))


Stat = tuple[float, int, float, float, float]
"""(sum, count, min, max, sum of squares)"""


class Stats:
    """`_stats`; raises ``InvalidValue``."""

    def reduce(self, rows: Sequence[Row]) -> Any:
        numbers = [row.number for row in rows if row.number is not None]
        if len(numbers) == len(rows):
            squares = sum([number * number for number in numbers])
            return (sum(numbers), len(numbers), min(numbers), max(numbers), squares)
        return self.rereduce([_stat(row.value) for row in rows])

    def rereduce(self, states: Sequence[Any]) -> Any:
        joined = states[0]
        for state in states[1:]:
            joined = _joined(joined, state)
        return joined

    def final(self, state: Any) -> Any:
        if isinstance(state, list):
            return [self.final(one) for one in state]
        return dict(zip(_STAT_NAMES, state, strict=True))


_STAT_NAMES = ("sum", "count", "min", "max", "sumsqr")


def _stat(value: Any) -> Stat | list[Any]:
    if _is_number(value):
        return (value, 1, value, value, value * value)
    if isinstance(value, list):
        return [_stat(one) for one in value]
    if isinstance(value, dict):
        return _prepared_stat(value)
    raise InvalidValue(
        "The _stats function requires that map values be numbers or arrays of numbers, not "
        f"'{orjson.dumps(value).decode()}'"
    )


def _prepared_stat(value: dict[str, Any]) -> Stat:
    """What somebody has computed before."""
    for name in _STAT_NAMES:
        if name not in value:
            raise InvalidValue(f"user _stats input missing required field {name}")
        if not _is_number(value[name]):
            raise InvalidValue(f"non-numeric _stats input received for {name}")
    total, count, least, most, squares = (value[name] for name in _STAT_NAMES)
    return (total, count, least, most, squares)


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_joined(left, right) for left, right in zip(one, other, strict=True)]
    if isinstance(one, tuple) and isinstance(other, tuple):
        return (
            one[0] + other[0], one[1] + other[1], min(one[2], other[2]), max(one[3], other[3]),
            one[4] + other[4],
        )  # fmt: skip
    raise InvalidValue(
        "The _stats function requires that map values be numbers or arrays of numbers of one length"
    )


class Distinct:
    """`_approx_count_distinct`: about how many keys there are, within some 2 %."""

    BITS: Final = 11
    REGISTERS: Final = 2**BITS

    def reduce(self, rows: Sequence[Row]) -> bytes:
        registers = bytearray(self.REGISTERS)
        for key in {row.key for row in rows}:
            number = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
            place, rest = number >> (64 - self.BITS), number & ((1 << (64 - self.BITS)) - 1)
            zeros = 64 - self.BITS - rest.bit_length() + 1
            if zeros > registers[place]:
                registers[place] = zeros
        return bytes(registers)

    def rereduce(self, states: Sequence[bytes]) -> bytes:
        return bytes(map(max, *states)) if len(states) > 1 else states[0]

    def final(self, state: bytes) -> int:
        empty = state.count(0)
        if empty:
            small = self.REGISTERS * math.log(self.REGISTERS / empty)
            if small <= 2.5 * self.REGISTERS:
                return round(small)
        alpha = 0.7213 / (1 + 1.079 / self.REGISTERS)
        return round(alpha * self.REGISTERS**2 / math.fsum(2.0**-zeros for zeros in state))


BUILTINS: Final[dict[str, Builtin]] = {
    "_sum": Sum(),
    "_count": Count(),
    "_stats": Stats(),
    "_approx_count_distinct": Distinct(),
}


def builtin_of(source: str) -> str | None:
    """The name of the built-in function that a source begins with, as CouchDB reads it."""
    return next((name for name in BUILTINS if source.startswith(name)), None)
