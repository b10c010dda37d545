"""The documents of a run, made from a seed: pure, the same bytes every time.

A document's ``body`` is a JSON object of exactly ``doc_bytes`` bytes without ``_id`` and
``_rev``; ids are 32 hex digits, evenly spread, as CouchDB's ``random`` uuids are.
"""

import json
import random
from collections.abc import Iterator, Sequence

DOC_BYTES_MIN = 120
NUMBER_FIRST = 10_000_000
"""Numbers in documents have eight digits, so that every body has the same length."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz     "


def ids(rng: random.Random, count: int) -> list[str]:
    """``count`` ids of 32 hex digits."""
    digits = rng.randbytes(16 * count).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


def body(rng: random.Random, doc_bytes: int, number: int) -> bytes:
    """One JSON object of ``doc_bytes`` bytes; ``number`` has eight digits."""
    head, tail = body_around_number(rng, doc_bytes)
    return head + str(number).encode() + tail


def body_around_number(rng: random.Random, doc_bytes: int) -> tuple[bytes, bytes]:
    """A body in two parts: eight digits go between them. ValueError when it cannot be so short."""
    if doc_bytes < DOC_BYTES_MIN:
        raise ValueError(f"a document has at least {DOC_BYTES_MIN} bytes, not {doc_bytes}")
    head = '{"type":"order","number":'
    tail = (
        f',"customer":"{rng.randbytes(8).hex()}","paid":{rng.choice(("true", "false"))}'
        f',"total":{rng.randrange(10_000, 99_999) / 100:.2f},"note":"'
    )
    note = "".join(rng.choices(_LETTERS, k=doc_bytes - len(head) - 8 - len(tail) - 2))
    return head.encode(), f'{tail}{note}"}}'.encode()


def with_id(doc_id: str, doc_body: bytes, rev: str | None = None) -> bytes:
    """``doc_body`` with ``_id`` (and ``_rev``) in front: as sent in bulk, as a server answers."""
    revision = f'"_rev":"{rev}",' if rev else ""
    return f'{{"_id":"{doc_id}",{revision}'.encode() + doc_body[1:]


def as_json_string(doc_body: bytes) -> str:
    """``doc_body`` as a value in JSON, for servers to which it is text."""
    return json.dumps(doc_body.decode())


def bulk_bodies(rng: random.Random, bodies: Sequence[bytes]) -> Iterator[bytes]:
    """``_bulk_docs`` requests without end: the same bodies, new ids each time.

    Cheap on purpose (one join a request), because the client's time is part of the measurement.
    """
    tails = [b'",' + doc[1:] + b',{"_id":"' for doc in bodies]
    tails[-1] = b'",' + bodies[-1][1:] + b"]}"
    while True:
        parts = [b""] * (2 * len(bodies))
        parts[0::2] = [doc_id.encode() for doc_id in ids(rng, len(bodies))]
        parts[1::2] = tails
        yield b'{"docs":[{"_id":"' + b"".join(parts)
