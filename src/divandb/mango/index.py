"""Indexes as design documents hold them, the way CouchDB writes them, so that they replicate.

    {"_id": "_design/x", "language": "query", "views": {"by-age": {
        "map": {"fields": {"age": "asc"}, "partial_filter_selector": {}},
        "reduce": "_count", "options": {"def": {"fields": ["age"]}}}}}

A design document of another language holds none. ``_all_docs``, the index by id, is there without
a document.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import blake2b, sha1
from typing import Any, Final

import orjson

from divandb.errors import BadRequest, NotFound
from divandb.mango import keys, options, selector, tree
from divandb.mango.options import Definition, NewIndex, Sort, refused
from divandb.mango.tree import shown

LANGUAGE: Final = "query"
DESIGN: Final = "_design/"
ALL_DOCS: Final = "_all_docs"
ENCODING: Final = 1
"""Goes up when keys are encoded otherwise, so that indexes are built anew."""

MISSING: Final = object()
"""What stands where nothing does."""


class Index:
    """One index of a database; ``ddoc`` is None for the one by id."""

    def __init__(self, ddoc: str | None, name: str, definition: Definition) -> None:
        self.ddoc = ddoc
        self.name = name
        self.fields = definition.fields
        self.partial = definition.partial

    @property
    def is_special(self) -> bool:
        """Is it the index by id?"""
        return self.ddoc is None

    @cached_property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The indexed fields."""
        return tuple(tree.path_of(field) for field, _ in self.fields)

    @cached_property
    def signature(self) -> bytes:
        """16 bytes, the same for what gives the same rows."""
        partial = None if self.partial is None else tree.as_json(self.partial)
        told = [ENCODING, self.paths, partial]
        return blake2b(orjson.dumps(told), digest_size=16, person=b"mango index").digest()

    @cached_property
    def key_of(self) -> Callable[[dict[str, Any]], bytes | None]:
        """Where a document stands in the index; None: it is not in it."""
        paths = self.paths
        takes = None if self.partial is None else selector.predicate(self.partial)

        def key(document: dict[str, Any]) -> bytes | None:
            values = []
            for path in paths:
                value = found_at(document, path)
                if value is MISSING:
                    return None
                values.append(value)
            return keys.row(values) if takes is None or takes(document) else None

        return key

    def as_json(self) -> dict[str, Any]:
        """As ``GET _index`` and ``_explain`` show it."""
        shown_fields = [{field: direction} for field, direction in self.fields]
        definition: dict[str, Any] = {"fields": shown_fields}
        if self.is_special:
            return {"ddoc": None, "name": self.name, "type": "special", "def": definition}
        if self.partial is not None:
            definition["partial_filter_selector"] = tree.as_json(self.partial)
        return {
            "ddoc": self.ddoc,
            "name": self.name,
            "type": "json",
            "partitioned": False,
            "def": definition,
        }


BY_ID: Final = Index(None, ALL_DOCS, Definition((("_id", "asc"),), None))


def found_at(document: Any, path: tuple[str, ...]) -> Any:
    """What stands at a path of names and array indexes; ``MISSING`` if nothing does."""
    value = document
    for name in path:
        if isinstance(value, dict):
            if name not in value:
                return MISSING
            value = value[name]
        elif isinstance(value, list):
            place = tree.index_of(name)
            if not 0 <= place < len(value):
                return MISSING
            value = value[place]
        else:
            return MISSING
    return value


def picked(document: dict[str, Any], paths: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """What of a document lies at these paths."""
    left: dict[str, Any] = {}
    for path in paths:
        value = found_at(document, path)
        if value is not MISSING:
            _put(left, path, value)
    return left


def _put(target: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        target[name] = target = dict(inner)
    target[path[-1]] = value


# ---- in design documents ------------------------------------------------------------------------


def design_id(name: str) -> str:
    """The id of a design document that may be named without its beginning."""
    return name if name.startswith(DESIGN) else DESIGN + name


def new(wanted: NewIndex) -> Index:
    """The index that was asked for; one without a name is named by what it is."""
    known = orjson.dumps([wanted.given, wanted.name, wanted.ddoc], option=orjson.OPT_SORT_KEYS)
    name = sha1(known, usedforsecurity=False).hexdigest()
    return Index(design_id(wanted.ddoc or name), wanted.name or name, wanted.definition)


def of_design(document: Mapping[str, Any]) -> list[Index]:
    """The indexes in a design document; what is none of CouchDB's is passed over."""
    views = document.get("views")
    if document.get("language") != LANGUAGE or not isinstance(views, dict):
        return []
    found = []
    for name, view in views.items():
        try:
            definition = _definition(view)
        except BadRequest:
            continue
        if definition is not None:
            found.append(Index(document["_id"], name, definition))
    return found


def _definition(view: Any) -> Definition | None:
    if not isinstance(view, dict) or not isinstance(view.get("map"), dict):
        return None
    fields = view["map"].get("fields")
    if not isinstance(fields, dict):
        return None
    order: Sort = options.read_sort("fields", [{field: way} for field, way in fields.items()])
    given = view["map"].get("partial_filter_selector")
    partial = tree.parse(given) if given else None
    if partial is not None:
        selector.predicate(partial)
    return Definition(order, partial)


def added(document: Mapping[str, Any], index: Index, given: Mapping[str, Any]) -> dict[str, Any]:
    """A design document's members with an index put into it; raises ``BadRequest`` for one of
    another language.
    """
    members = _members(document)
    partial = {} if index.partial is None else tree.as_json(index.partial)
    view = {
        "map": {"fields": dict(index.fields), "partial_filter_selector": partial},
        "reduce": "_count",
        "options": {"def": dict(given)},
    }
    views = members.get("views")
    members["views"] = {**(views if isinstance(views, dict) else {}), index.name: view}
    return members


def removed(document: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The same with an index taken out of it; None if nothing is left."""
    members = _members(document)
    views = {key: view for key, view in members.get("views", {}).items() if key != name}
    if len(views) == len(members.get("views", {})):
        raise NotFound("missing")
    if views:
        return members | {"views": views}
    del members["views"]
    return members if members != {"language": LANGUAGE} else None


def _members(document: Mapping[str, Any]) -> dict[str, Any]:
    members = {name: value for name, value in document.items() if name[:1] != "_"}
    if members.setdefault("language", LANGUAGE) != LANGUAGE or (
        document and "language" not in document
    ):
        reason = "Existing design doc has an invalid language: " + shown(document.get("language"))
        raise refused("invalid_ddoc_lang", reason)
    return members
