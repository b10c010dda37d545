"""Frequently read documents, kept at hand as they are sent.

A document is kept when it is asked for again before some thousand others were, so that those which
are read once cost next to nothing. Of what is kept, what was read since its turn came last gets
another turn, up to three, as in the main queue of S3-FIFO (Yang and others, "FIFO queues are all
you need for cache eviction", 2023). A hit is a look into a dictionary.

The event loop reads and fills it, the writer's thread takes out what a commit replaces: before the
commit, and until it stands nothing is put in (``replacing``). So nobody is given what was replaced
by a write that anybody has heard of.
"""

import heapq
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

Key = tuple[int, str]
"""The number of a database, and a document's id."""
Value = tuple[str, int, bytes]
"""Revision, flags, body."""
ENTRY_BYTES = 400
"""Counted for each besides its body: what Python needs for it."""
USES_MAX = 3
"""Turns that reads can earn."""
NAMES_PER_DOCUMENT = 4
NAMES_MIN = 1024
"""Names of documents that were asked for once are remembered: so many, or so many times as many as
there are documents.
"""


class _Entry:
    __slots__ = ("size", "uses", "value")

    def __init__(self, value: Value, size: int) -> None:
        self.value = value
        self.size = size
        self.uses = 0


class HotDocuments:
    """At most ``bytes_max`` bytes of them; 0: none."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # Queues: their order is that of arrival.
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._names: OrderedDict[Key, None] = OrderedDict()
        self._lock = threading.Lock()
        self._commits = 0
        self._is_committing = False
        self.bytes = 0
        """What is kept."""
        self.hits = 0
        self.misses = 0

    def get(self, key: Key) -> Value | None:
        """What is kept of a document."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        if entry.uses < USES_MAX:
            entry.uses += 1
        return entry.value

    @property
    def now(self) -> int:
        """To be asked before a document is read that is then ``put``."""
        return self._commits

    def stamp(self) -> int | None:
        """What stays the same until a commit changes the file; ``None``: one does just now."""
        return None if self._is_committing else self._commits

    def put(self, key: Key, value: Value, as_of: int) -> None:
        """A document was read after ``now`` was ``as_of``: keep it if it was asked for before, and
        nothing was replaced since.
        """
        if key not in self._names:
            self.expect(key)
            return
        entry = _Entry(value, ENTRY_BYTES + len(value[2]))
        with self._lock:
            if self._commits != as_of or self._is_committing or entry.size > self._bytes_max:
                return
            del self._names[key]
            self._take_out(key)
            self._entries[key] = entry
            self.bytes += entry.size
            while self.bytes > self._bytes_max:
                self._evict()

    def expect(self, key: Key) -> None:
        """It is asked for: the next time that it is ``put`` it is kept."""
        self._names[key] = None
        if len(self._names) > max(NAMES_PER_DOCUMENT * len(self._entries), NAMES_MIN):
            self._names.popitem(last=False)

    @contextmanager
    def replacing(self, keys: Sequence[Key]) -> Iterator[None]:
        """Within it a commit is made, which replaces or removes these documents."""
        with self._lock:
            self._is_committing = True
            for key in keys:
                self._take_out(key)
        try:
            yield
        finally:
            with self._lock:
                self._commits += 1
                self._is_committing = False

    def hottest(self, count: int) -> list[Key]:
        """Names of those that are read most."""
        with self._lock:
            found = [(entry.uses, key) for key, entry in self._entries.items()]
        return [key for _, key in heapq.nlargest(count, found)]

    def status(self) -> dict[str, int]:
        """For JSON and metrics."""
        return {
            "documents": len(self._entries),
            "bytes": self.bytes,
            "hits": self.hits,
            "misses": self.misses,
        }

    # Under the lock

    def _take_out(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size

    def _evict(self) -> None:
        """The one whose turn it is goes, or gets another turn."""
        key, entry = self._entries.popitem(last=False)
        if entry.uses:
            entry.uses -= 1
            self._entries[key] = entry
        else:
            self.bytes -= entry.size
