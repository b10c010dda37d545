"""The databases that requests may name: what each request needs of one, kept in memory.

Lives on the event loop. Filled from the file at the start and brought up to date in the step that
answers a commit, before its client hears of it.
"""

import msgspec

from divandb.auth.policy import DEFAULT_SECURITY, Security, parse_security
from divandb.errors import NotFound
from divandb.master import REVS_LIMIT
from divandb.store import databases, registers
from divandb.store.databases import Database
from divandb.store.file import Connection
from divandb.store.ledger import Changes

NO_DATABASE = "Database does not exist."


class Known(msgspec.Struct, frozen=True):
    """One living database. Counters are read from the file when asked for: see
    ``Catalog.counters``.
    """

    num: int
    name: str
    generation: int
    place: int
    place_end: int
    security: Security
    security_json: bytes
    revs_limit: int
    options: dict[str, object]
    created_ms: int


class Catalog:
    """name → ``Known``, and the generation that a create of a name would make."""

    def __init__(self, connection: Connection, revs_limit: int) -> None:
        self._connection = connection
        self._revs_limit = revs_limit
        self._known: dict[str, Known] = {}
        self._generations: dict[str, int] = {}
        for database in databases.newest(databases.load_all(connection)).values():
            self._take(database)

    def get(self, name: str) -> Known:
        """The database of that name; raises ``NotFound``."""
        known = self._known.get(name)
        if known is None:
            raise NotFound(NO_DATABASE)
        return known

    def find(self, name: str) -> Known | None:
        """The database of that name, if there is one."""
        return self._known.get(name)

    def names(self) -> list[str]:
        """All names in order."""
        return sorted(self._known)

    def generation(self, name: str) -> int:
        """The highest generation that this name has had; 0 if none."""
        return self._generations.get(name, 0)

    def counters(self, known: Known) -> Database:
        """The database's row as of the last commit; raises ``NotFound`` if it is gone."""
        database = databases.load(self._connection, known.num)
        if database is None or database.dropped:
            raise NotFound(NO_DATABASE)
        return database

    def refresh(self, changes: Changes) -> None:
        """Take over what a commit changed."""
        touched = set(changes.databases)
        touched.update(
            num
            for num, kind, _ in changes.registers
            if num != registers.NODE and kind in (registers.SECURITY, registers.OPTION)
        )
        for num in touched:
            database = databases.load(self._connection, num)
            if database is not None:
                self._take(database)

    def _take(self, database: Database) -> None:
        name = database.name
        if self._generations.get(name, 0) > database.generation:
            return
        self._generations[name] = database.generation
        if database.dropped:
            self._known.pop(name, None)
        else:
            self._known[name] = self._describe(database)

    def _describe(self, database: Database) -> Known:
        security_json = registers.value(self._connection, database.num, registers.SECURITY, "")
        if security_json is None:
            security_json = msgspec.json.encode(DEFAULT_SECURITY)
        limit = registers.value(self._connection, database.num, registers.OPTION, REVS_LIMIT)
        return Known(
            num=database.num,
            name=database.name,
            generation=database.generation,
            place=database.place,
            place_end=database.place_end,
            security=parse_security(msgspec.json.decode(security_json)),
            security_json=security_json,
            revs_limit=int(limit) if limit is not None else self._revs_limit,
            options=msgspec.json.decode(database.options),
            created_ms=database.created_ms,
        )
