"""What a view's query asks for as a stretch of its index.

Rows stand in the order of (key, id, n). A place between two rows is such a triple that no row has:
``n`` is ``BEFORE`` or ``AFTER`` all rows of a key and id.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from divandb.errors import QueryParseError
from divandb.mango import keys

BEFORE: Final = -1
AFTER: Final = 2**62
FIRST_ID: Final = ""
LAST_ID: Final = b""
"""Stands behind every text in SQLite's order."""

Place = tuple[bytes, str | bytes, int]
Encode = Callable[[Any], bytes]
"""JSON values → bytes that have their order."""


class Stretch(msgspec.Struct, frozen=True):
    """The rows between two places."""

    low: Place
    high: Place
    descending: bool = False

    def behind(self, row: Place) -> "Stretch":
        """What is left behind a row that was read."""
        if self.descending:
            return msgspec.structs.replace(self, high=row)
        return msgspec.structs.replace(self, low=row)

    def before(self, whole: "Stretch") -> "Stretch":
        """What of the whole comes before this stretch in reading order."""
        if self.descending:
            return Stretch(self.high, whole.high, True)
        return Stretch(whole.low, self.low)


def all_of(part: bytes, *, descending: bool = False) -> Stretch:
    """All rows of a view."""
    return Stretch((part, FIRST_ID, BEFORE), (part + keys.ABOVE, FIRST_ID, BEFORE), descending)


def of_key(part: bytes, key: bytes, *, descending: bool = False) -> Stretch:
    """The rows of one key, which is encoded as the view's are."""
    whole = part + key
    return Stretch((whole, FIRST_ID, BEFORE), (whole, LAST_ID, AFTER), descending)


def between(
    part: bytes,
    start: bytes | None,
    end: bytes | None,
    start_id: str | None,
    end_id: str | None,
    *,
    descending: bool,
    inclusive_end: bool,
) -> Stretch:
    """The rows from ``start`` to ``end`` in reading order, which are keys encoded as the view's
    are; None where there is no bound. The ids count only beside their keys.

    Raises ``QueryParseError`` where nothing can be between them.
    """
    whole = all_of(part, descending=descending)
    low, high = whole.low, whole.high
    if start is not None:
        key = part + start
        if descending:
            high = (key, LAST_ID if start_id is None else start_id, AFTER)
        else:
            low = (key, FIRST_ID if start_id is None else start_id, BEFORE)
    if end is not None:
        key = part + end
        if descending:
            first = FIRST_ID if inclusive_end else LAST_ID
            low = (key, first if end_id is None else end_id, BEFORE if inclusive_end else AFTER)
        else:
            last = LAST_ID if inclusive_end else FIRST_ID
            high = (key, last if end_id is None else end_id, AFTER if inclusive_end else BEFORE)
    if start is not None and end is not None and _is_reversed(low, high):
        other = "false" if descending else "true"
        raise QueryParseError(
            "No rows can match your key range, reverse your start_key and end_key or set "
            f"descending={other}"
        )
    return Stretch(low, high, descending)


def _is_reversed(low: Place, high: Place) -> bool:
    return low[0] > high[0]


def group_of(key: Any, own: bytes, encoded: Encode, level: int | None) -> tuple[Any, bytes, bool]:
    """The group that a row belongs to, whose encoded key is ``own``: (its key, how the encoded keys
    of its rows begin, are they all alike); ``level`` None groups by whole keys.
    """
    if level is not None and isinstance(key, list) and len(key) >= level:
        short = key[:level]
        return short, encoded(short)[:-1], False
    return key, own, True
