"""Design documents as they are used: their views and functions, read once for each change.

Lives on the event loop. What is kept of a database is forgotten when one of its design documents
changes (``Changes.designs``).
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import orjson

from divandb.catalog import Known
from divandb.errors import NotFound
from divandb.store import listing
from divandb.store.file import Connection
from divandb.views import design
from divandb.views.design import Views
from divandb.views.engine import Program

DESIGNS_MAX = 10_000
"""Design documents of a database that are looked at."""
KEPT_MAX = 1000
"""Databases whose design documents are remembered."""
VALIDATE = "validate_doc_update"


class Design:
    """One design document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.id: str = document["_id"]

    @cached_property
    def views(self) -> Views:
        """Its views."""
        return Views(self.document)

    @cached_property
    def program(self) -> Program:
        """All of it, for its functions."""
        return design.functions(self.document)

    @property
    def validates(self) -> bool:
        """Has it a function that is asked about each write?"""
        language = self.document.get("language", design.LANGUAGE)
        source = self.document.get(VALIDATE)
        return language == design.LANGUAGE and isinstance(source, str) and bool(source)


class Designs:
    """The design documents of all databases."""

    def __init__(self, reading: Connection) -> None:
        self._reading = reading
        self._kept: dict[int, dict[str, Design]] = {}
        self._validators: dict[int, tuple[Design, ...]] = {}

    def forget(self, nums: set[int]) -> None:
        """Design documents of these databases have changed."""
        for num in nums:
            self._kept.pop(num, None)
            self._validators.pop(num, None)

    def of(self, known: Known) -> dict[str, Design]:
        """Those of a database by id; living ones only."""
        kept = self._kept.get(known.num)
        if kept is None:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
                self._validators.clear()
            kept = self._kept[known.num] = {one.id: one for one in self._read(known)}
        return kept

    def _read(self, known: Known) -> Iterator[Design]:
        revs = listing.design_revs(self._reading, known.num, DESIGNS_MAX)
        for body in listing.bodies(self._reading, known.num, [doc_id for doc_id, _ in revs]):
            yield Design(orjson.loads(body))

    def get(self, known: Known, name: str) -> Design:
        """The design document of that name; raises ``NotFound``."""
        found = self.of(known).get("_design/" + name)
        if found is None:
            row = listing.deleted(self._reading, known.num, "_design/" + name)
            raise NotFound("deleted" if row else "missing")
        return found

    def validators(self, known: Known) -> tuple[Design, ...]:
        """Those that are asked about each write."""
        found = self._validators.get(known.num)
        if found is None:
            validating = [one for one in self.of(known).values() if one.validates]
            found = self._validators[known.num] = tuple(validating)
        return found
