"""Who is a member no more. A name that was removed is never given again."""

from divandb.store import file, registers
from divandb.store.file import Connection

_EXPELLED = "expelled"


def removed(connection: Connection) -> set[str]:
    """The names of all nodes that were removed, as far as the file knows."""
    return {name for name, _ in registers.scan(connection, registers.NODE, registers.REMOVED)}


def is_removed(connection: Connection, name: str) -> bool:
    """Was this node removed, as its file knows?"""
    return name in removed(connection) or file.get_meta(connection, _EXPELLED) is not None


def note_expelled(connection: Connection) -> None:
    """Others have said to this node that it was removed; a copy of its file does not know it."""
    file.set_meta(connection, _EXPELLED, b"")
