"""Databases: a register (name → generation, dropped) and the counters of each generation."""

import msgspec

from divandb.store.file import Connection

PLACE_BITS = 40
SEQ_MASK = (1 << PLACE_BITS) - 1
EMPTY_DIGEST = bytes(16)
"""The digest of a generation that holds nothing, or is dropped."""


class Database(msgspec.Struct):
    """One generation of one database, as its row has it."""

    num: int
    name: str
    generation: int
    dropped: bool
    freed: bool
    created_ms: int
    """0 until the event of its creation has come: documents' events may come first."""
    seq: int
    mark_seq: int
    purge_seq: int
    docs: int
    tombstones: int
    body_bytes: int
    old_bytes: int
    options: str
    digest: bytes = EMPTY_DIGEST

    @property
    def creation(self) -> tuple[bool, int, str]:
        """What decides between two creations of one generation: the lesser is taken everywhere."""
        return creation_order(self.created_ms, self.options)

    @property
    def place(self) -> int:
        """The place before the database's first change."""
        return self.num << PLACE_BITS

    @property
    def place_end(self) -> int:
        """The place behind the last change it can ever have."""
        return (self.num + 1) << PLACE_BITS


def creation_order(created_ms: int, options: str) -> tuple[bool, int, str]:
    """A known creation is less than an unknown one, an earlier one less than a later."""
    return (created_ms == 0, created_ms, options)


_COLUMNS = ", ".join(Database.__struct_fields__)
_UPDATE = """
UPDATE database SET dropped = ?, freed = ?, created_ms = ?, seq = ?, mark_seq = ?, purge_seq = ?,
    docs = ?, tombstones = ?, body_bytes = ?, old_bytes = ?, options = ?, digest = ? WHERE num = ?
"""


def load_all(connection: Connection) -> list[Database]:
    """Every generation in the file, oldest first."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM database ORDER BY num")
    return [_from_row(row) for row in rows]


def find(connection: Connection, name: str) -> Database | None:
    """A name's highest generation."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM database WHERE name = ? ORDER BY generation DESC LIMIT 1", (name,)
    ).fetchone()
    return _from_row(row) if row else None


def load(connection: Connection, num: int) -> Database | None:
    """One generation by its number."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM database WHERE num = ?", (num,)).fetchone()
    return _from_row(row) if row else None


def _from_row(row: tuple[object, ...]) -> Database:
    database = Database(*row)  # type: ignore[arg-type]
    database.dropped = bool(database.dropped)
    database.freed = bool(database.freed)
    return database


def insert(connection: Connection, database: Database) -> None:
    """Add a new generation."""
    marks = ", ".join("?" * len(Database.__struct_fields__))
    connection.execute(
        f"INSERT INTO database ({_COLUMNS}) VALUES ({marks})", msgspec.structs.astuple(database)
    )


def update(connection: Connection, database: Database) -> None:
    """Write back what changes in a database's row."""
    d = database
    connection.execute(
        _UPDATE,
        (
            d.dropped,
            d.freed,
            d.created_ms,
            d.seq,
            d.mark_seq,
            d.purge_seq,
            d.docs,
            d.tombstones,
            d.body_bytes,
            d.old_bytes,
            d.options,
            d.digest,
            d.num,
        ),
    )


def delete(connection: Connection, num: int) -> None:
    """Remove the row of a generation."""
    connection.execute("DELETE FROM database WHERE num = ?", (num,))


def newest(databases: list[Database]) -> dict[str, Database]:
    """The register: each name's highest generation."""
    register: dict[str, Database] = {}
    for database in databases:
        known = register.get(database.name)
        if known is None or known.generation < database.generation:
            register[database.name] = database
    return register
