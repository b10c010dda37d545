"""Which acknowledged writes may be gone: those whose only copies lay on disks that are.

``docs/guarantees.md`` says what can be lost: writes of concern ``local`` whose master's disk is
gone, or was put back, before they had left it. Whether there was a copy elsewhere is seen by
looking: into every node's file, and at the Masters' Board. What is excused may still turn up, from
a request that was on its way.
"""

from typing import TYPE_CHECKING, Any

from divandb import event as events
from divandb.store import changes, documents, file
from divandb.store.databases import load_all, newest
from divandb.store.file import Connection
from tests.sim.history import DOCUMENT, Write

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node

CACHE_BYTES = 2**18
Dot = tuple[int, int]


class Losses:
    """Keeps ``history.excused``."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.disks = 0
        """Disks that were lost, or put back."""
        self.boards = 0
        """How often the board has lost something."""

    def disk_lost(self, node: "Node") -> None:
        """Its disk was replaced; it is down."""
        self.disks += 1
        node.may_forget = True
        self.look()

    def board_lost(self) -> None:
        """The board has less than it had."""
        self.boards += 1
        self.look()

    def look(self) -> None:
        """Excuse what is nowhere; only a disk can be the reason."""
        if not self.disks:
            return
        history = self._cluster.history
        missing = {
            (origin, oseq): write
            for origin, oseq, write in history.all()
            if (origin, oseq) not in history.excused
        }
        for node in self._cluster.nodes:
            _take_away(missing, node)
        if missing:
            self._take_what_the_board_has(missing)
        history.excused.update(missing)

    def _take_what_the_board_has(self, missing: dict[Dot, Write]) -> None:
        for message in self._cluster.board.masters_messages():
            try:
                event = events.decode(message)
            except events.Unreadable:  # somebody's, who wanted to see what becomes of it
                continue
            for oseq in range(event.after + 1, event.mark + 1):
                missing.pop((event.origin, oseq), None)


def _take_away(missing: dict[Dot, Write], node: "Node") -> None:
    """What this node's file holds is not missing."""
    if node.up:
        _take(missing, node.connection)
    elif node.disk.path.exists():
        files = node.platter.image()
        connection = file.connect(node.disk, readonly=False, cache_bytes=CACHE_BYTES)
        try:
            if connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
                _take(missing, connection)
        finally:
            with node.platter.with_room():
                connection.close()
            node.platter.put_back(files)


def _take(missing: dict[Dot, Write], connection: Connection) -> None:
    vector: Any = changes.vector(connection)
    known = newest(load_all(connection))
    for (origin, oseq), write in list(missing.items()):
        if vector.get(origin, 0) >= oseq:
            del missing[origin, oseq]
        elif write.kind == DOCUMENT and write.name in known:
            row = documents.read_row(connection, known[write.name].num, write.key)
            if row.document.context.get(origin, 0) >= oseq:
                del missing[origin, oseq]
