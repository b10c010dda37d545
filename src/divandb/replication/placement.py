"""Which slot's owner runs a replication that is a document. Pure.

Every node chooses by itself. While nodes differ in whom they take to live, two may run the same one
for a moment: it writes the same revisions, so nothing is lost by that.
"""

import hashlib
from collections.abc import Iterable


def slot_for(doc_id: str, slots: Iterable[str]) -> str | None:
    """The slot of the highest hash, so that only those of a slot that went are moved; ``None``
    without slots.
    """
    return max(slots, key=lambda slot: _mark(slot, doc_id), default=None)


def _mark(slot: str, doc_id: str) -> bytes:
    text = f"{slot}\0{doc_id}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest() + slot.encode()
