"""``Range`` requests for attachments, decided as CouchDB decides them.

    no header, malformed, "bytes=0-", more than 9 ranges   -> None: 200 with everything
    an end before its start, a start past the end          -> RangeNotSatisfiable (416)
    everything else                                        -> the ranges: 206

Unlike CouchDB, a suffix longer than the attachment means all of it (RFC 9110, 14.1.2)
instead of a negative start, and an empty list of ranges counts as malformed.
"""

import re

from divandb.errors import RangeNotSatisfiable

RANGES_MAX = 9

# Enough digits for any size; more could only make int() slow or refuse.
_SPEC = re.compile(r"([0-9]{0,100})-([0-9]{0,100})")


def parse_range(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """The ranges asked for as (first, last) byte, both inclusive and within ``size`` bytes.

    One range is answered with ``Content-Range``, several as multipart/byteranges; None
    means that the header is to be ignored. Raises RangeNotSatisfiable, with the
    ``content-range`` header that a 416 carries.
    """
    specs = _specs(header) if header else []
    ranges: list[tuple[int, int]] = []
    for first, last in specs:
        if first == 0 and last is None:
            return None
        ranges.append(_resolve(first, last, size))
    return ranges if 0 < len(ranges) <= RANGES_MAX else None


def content_range(first: int, last: int, size: int) -> str:
    """The ``Content-Range`` of bytes ``first`` to ``last``, inclusive, of ``size``."""
    return f"bytes {first}-{last}/{size}"


def _specs(header: str) -> list[tuple[int | None, int | None]]:
    """The numbers as written, None where one was left out; an empty list when malformed."""
    unit, _, listed = header.partition("=")
    if unit.strip().lower() != "bytes":
        return []
    specs: list[tuple[int | None, int | None]] = []
    for text in filter(None, (item.strip() for item in listed.split(","))):
        match = _SPEC.fullmatch(text)
        if match is None or text == "-":
            return []
        first, last = match.groups()
        specs.append((int(first) if first else None, int(last) if last else None))
    return specs


def _resolve(first: int | None, last: int | None, size: int) -> tuple[int, int]:
    if first is None:
        suffix_bytes = last or 0
        first, last = max(size - suffix_bytes, 0), size - 1
    elif last is None or last >= size:
        last = size - 1
    if last < first:
        raise RangeNotSatisfiable(
            "Requested range not satisfiable", headers={"content-range": f"bytes */{size}"}
        )
    return first, last
