"""How far each board's partition has been applied: written in the transaction that applied."""

from typing import Any

import msgspec

from divandb.store.file import Connection


class Position(msgspec.Struct, frozen=True):
    """The next offset to read, and the identity of the log in which it means something."""

    board: str
    topic: str
    partition: int
    identity: str
    next: int


def read(connection: Connection, board: str, topic: str, partition: int) -> Position | None:
    """The position, or ``None`` if nothing was ever read there."""
    row: Any = connection.execute(
        "SELECT identity, next FROM position WHERE board = ? AND topic = ? AND partition = ?",
        (board, topic, partition),
    ).fetchone()
    return Position(board, topic, partition, *row) if row else None


def write(connection: Connection, position: Position) -> None:
    """Note how far was read."""
    connection.execute(
        "INSERT OR REPLACE INTO position VALUES (?, ?, ?, ?, ?)",
        (position.board, position.topic, position.partition, position.identity, position.next),
    )


def read_all(connection: Connection) -> list[Position]:
    """Every position in the file."""
    rows: Any = connection.execute(
        "SELECT board, topic, partition, identity, next FROM position ORDER BY topic, partition"
    )
    return [Position(*row) for row in rows]
