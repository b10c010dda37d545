"""Documents as both clients show them: dictionaries that know what was last read or stored."""

from typing import Any

import orjson

from divandb.client.wire import Json


class Fields(dict[str, Any]):
    """A document: a dictionary, with its id, its revision and whether it was changed."""

    def __init__(self, doc_id: str, members: Json | None = None) -> None:
        """``members`` may have ``_rev``; ``_id`` is ``doc_id`` in any case."""
        super().__init__(members or {})
        self["_id"] = doc_id
        self._known: bytes | None = None
        """As it was last read or stored; ``None``: never."""

    @property
    def id(self) -> str:
        """The document's id."""
        doc_id: str = self["_id"]
        return doc_id

    @property
    def rev(self) -> str | None:
        """The revision that it was read or stored as; ``None``: it is new."""
        return self.get("_rev")

    @property
    def exists(self) -> bool:
        """Is it on the server, as far as is known here?"""
        return self._known is not None and not self.get("_deleted", False)

    @property
    def is_dirty(self) -> bool:
        """Has it been changed since it was read or stored?"""
        return self._known != _packed(self)

    @property
    def json(self) -> Json:
        """A plain dictionary with all members."""
        return dict(self)

    def read(self, members: Json) -> None:
        """This is what the server has."""
        self.clear()
        self.update(members)
        self._known = _packed(self)

    def stored(self, rev: str) -> None:
        """The server has it as it is, as this revision."""
        self["_rev"] = rev
        self._known = _packed(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"


def _packed(members: Json) -> bytes:
    return orjson.dumps(members)


class SecurityMembers(dict[str, Any]):
    """A database's `_security`: who may read and write it, and who may do more."""

    @property
    def members(self) -> list[str]:
        """Users that may read and write."""
        return self._part("members", "names")

    @property
    def member_roles(self) -> list[str]:
        """The same for roles."""
        return self._part("members", "roles")

    @property
    def admins(self) -> list[str]:
        """Users that may change design documents and this."""
        return self._part("admins", "names")

    @property
    def admin_roles(self) -> list[str]:
        """The same for roles."""
        return self._part("admins", "roles")

    def _part(self, group: str, part: str) -> list[str]:
        """The list itself: what is added to it is in the document."""
        found: list[str] = self.setdefault(group, {}).setdefault(part, [])
        return found
