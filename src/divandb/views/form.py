"""The form that a design document must have, whatever language its functions are in.

Source of the rules and their words: CouchDB ``couch_mrview:validate_ddoc_fields``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Step = tuple[str, tuple[str, ...]]
"""(a member, or ``ANY`` of them, the types that it may have)"""

ANY: Final = "*"
_TYPES: Final[dict[str, type]] = {"object": dict, "string": str, "array": list, "boolean": bool}
_OBJECT, _STRING, _FLAG = ("object",), ("string",), ("boolean",)
_EITHER: Final = ("object", "string")
_PATHS: Final[tuple[tuple[Step, ...], ...]] = (
    (("filters", _OBJECT), (ANY, _EITHER)),
    (("language", _STRING),),
    (("lists", _OBJECT), (ANY, _EITHER)),
    (("options", _OBJECT), ("include_design", _FLAG)),
    (("options", _OBJECT), ("local_seq", _FLAG)),
    (("options", _OBJECT), ("partitioned", _FLAG)),
    (("rewrites", ("string", "array")),),
    (("shows", _OBJECT), (ANY, _EITHER)),
    (("updates", _OBJECT), (ANY, _EITHER)),
    (("validate_doc_update", ("string", "object")),),
    (("views", _OBJECT), ("lib", _OBJECT)),
    (("views", _OBJECT), (ANY, _OBJECT), ("reduce", _STRING)),
)
MAP: Final = "map"
NOT_PARTITIONED: Final = "partitioned option cannot be true in a non-partitioned database."


def fault(document: Mapping[str, Any], *, partitioned: bool) -> str | None:
    """Why it is no design document; None if it is one. ``partitioned``: was its database declared
    so?
    """
    kind = _OBJECT if document.get("language") == "query" else _STRING
    paths = (*_PATHS, (("views", _OBJECT), (ANY, _OBJECT), (MAP, kind)))
    found = next((one for path in paths for one in _wrong(document, path, ())), None)
    if found is not None:
        return found
    for name, view in document.get("views", {}).items():
        if name != "lib" and MAP not in view:
            return f"View `{name}` must contain map function"
    if document.get("options", {}).get("partitioned") and not partitioned:
        return NOT_PARTITIONED
    return None


def _wrong(
    value: Mapping[str, Any], path: tuple[Step, ...], above: tuple[str, ...]
) -> Iterator[str]:
    if not path:
        return
    (wanted, types), rest = path[0], path[1:]
    for name in value if wanted == ANY else (wanted,):
        if name not in value:
            continue
        member = value[name]
        if not isinstance(member, tuple(_TYPES[one] for one in types)):
            where, what = ".".join((*above, name)), " or ".join(types)
            yield f"`{where}` field must have {what} type"
        elif isinstance(member, dict):
            yield from _wrong(member, rest, (*above, name))
