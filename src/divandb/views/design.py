"""What a design document holds for the engine: views, and functions by name.

    {"_id": "_design/x", "language": "javascript",
     "views": {"by-age": {"map": "function(doc) { … }", "reduce": "_count",
                          "options": {"collation": "raw"}},
               "lib": {…}},
     "options": {"local_seq": true, "include_design": true},
     "filters": {…}, "updates": {…}, "validate_doc_update": "function(…) { … }"}

All views of a design document are one index, known by a signature of their map functions, of what
these may `require`, and of the options. So each document is mapped once for all of them, and a
view with another reduce function is the same index. One of the same map function with another
order is a part of its own, as it is in CouchDB.
"""

from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from divandb.errors import NotFound, NotImplementedHere
from divandb.mango import keys
from divandb.mango.index import ENCODING
from divandb.views import raw
from divandb.views.engine import Program
from divandb.views.ranges import Encode

LANGUAGE: Final = "javascript"
MANGO: Final = "query"
PART_BYTES: Final = 2
"""What of a key says to which map function it belongs."""
VIEWS_MAX: Final = 256**PART_BYTES - 1
LIB: Final = "lib"
RAW: Final = "raw"


class Map(NamedTuple):
    """A map function, and the order of what it emits."""

    source: str
    is_raw: bool = False
    """CouchDB's raw collation?"""

    @property
    def encoded(self) -> Encode:
        """How keys are kept."""
        return raw.encoded if self.is_raw else keys.encoded

    @property
    def told(self) -> str | list[str]:
        """What of it makes another index."""
        return [self.source, RAW] if self.is_raw else self.source


class View:
    """One view: the rows of its map function, and how they are reduced."""

    def __init__(self, name: str, number: int, map_: Map, reduce: str | None) -> None:
        self.name = name
        self.part = number.to_bytes(PART_BYTES, "big")
        self.map = map_
        self.reduce = reduce


class Views:
    """The views of one design document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        found = document.get("views")
        views: Mapping[str, Any] = found if isinstance(found, dict) else {}
        given = document.get("options")
        self.id: str = document["_id"]
        self.language = document.get("language", LANGUAGE)
        self.options: Mapping[str, Any] = given if isinstance(given, dict) else {}
        self.lib: object = views.get(LIB, {})
        self.maps: dict[Map, str] = {}
        """map function → the name of the first view that has it"""
        self.views: dict[str, View] = {}
        for name in sorted(views):
            view = views[name]
            if name == LIB or not isinstance(view, dict) or not isinstance(view.get("map"), str):
                continue
            one, reduce = Map(view["map"], _is_raw(view)), view.get("reduce")
            self.maps.setdefault(one, name)
            number = list(self.maps).index(one)
            self.views[name] = View(name, number, one, reduce if isinstance(reduce, str) else None)

    @property
    def is_kept(self) -> bool:
        """Is there anything to keep an index of?"""
        return bool(self.maps) and self.language == LANGUAGE and len(self.maps) <= VIEWS_MAX

    def view(self, name: str) -> View:
        """The view of that name; raises ``NotFound``, or ``NotImplementedHere`` for another
        language.
        """
        found = self.views.get(name)
        if found is None:
            raise NotFound("missing_named_view")
        check_language(self.language)
        return found

    @cached_property
    def signature(self) -> bytes:
        """16 bytes, the same for what gives the same rows."""
        told = [ENCODING, [one.told for one in self.maps], self.lib, self.options]
        packed = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
        return blake2b(packed, digest_size=16, person=b"views").digest()

    @cached_property
    def program(self) -> Program:
        """The map functions, with what they may `require`."""
        maps = [[name, one.source] for one, name in self.maps.items()]
        text = orjson.dumps({"design": {"views": {LIB: self.lib}}, "maps": maps}).decode()
        return Program(self.signature, text, self.id)

    def option(self, name: str) -> bool:
        """An option that is on or off."""
        return self.options.get(name) is True

    @cached_property
    def about(self) -> bytes:
        """What ``from_about`` makes the same views of."""
        views = {
            name: {"map": view.map.source, "reduce": view.reduce, **_options(view.map)}
            for name, view in self.views.items()
        }
        return orjson.dumps(
            {"_id": self.id, "language": self.language, "options": self.options,
             "views": {**views, LIB: self.lib}}
        )  # fmt: skip


def _is_raw(view: Mapping[str, Any]) -> bool:
    options = view.get("options")
    return isinstance(options, dict) and options.get("collation") == RAW


def _options(one: Map) -> dict[str, Any]:
    return {"options": {"collation": RAW}} if one.is_raw else {}


def check_language(language: object) -> None:
    """Raises ``NotImplementedHere`` for a language whose functions are not run."""
    if language != LANGUAGE:
        shown = language if isinstance(language, str) else "nothing known"
        raise NotImplementedHere(
            f"Functions in {shown} are not run, only those in {LANGUAGE}.",
            error="unknown_query_language",
        )


def functions(document: Mapping[str, Any]) -> Program:
    """All of a design document, for its filters, updates and validation."""
    kept = {name: value for name, value in document.items() if name != "_attachments"}
    text = orjson.dumps({"design": kept, "maps": []})
    return Program(blake2b(text, digest_size=16).digest(), text.decode(), document["_id"])


def function_path(document: Mapping[str, Any], *path: str) -> str:
    """The path of a function as `program.js` takes it; raises ``NotFound`` in CouchDB's words, or
    ``NotImplementedHere``.
    """
    value: Any = document
    for name in path:
        if not isinstance(value, dict):
            raise NotFound("json_mismatch")
        value = value.get(name)
        if value is None:
            raise NotFound(f"missing json key: {name}")
    check_language(document.get("language", LANGUAGE))
    return orjson.dumps(path).decode()
