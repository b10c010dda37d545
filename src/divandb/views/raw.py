"""The order in which CouchDB keeps what one document emits with one key: that of Erlang's terms.

    numbers < false < null < true < objects < arrays < strings

Nothing here recurses, so that values may be nested to any depth.
"""

from typing import Any, Final

_END: Final = object()


def order(value: Any) -> list[tuple[Any, ...]]:
    """A sort key of a JSON value."""
    found: list[tuple[Any, ...]] = []
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if one is _END:
            found.append((-1,))
        elif isinstance(one, bool) or one is None:
            found.append((1, {False: 0, None: 1, True: 2}[one]))
        elif isinstance(one, str):
            found.append((4, one))
        elif isinstance(one, dict):
            found.append((2,))
            left.append(_END)
            for name, member in reversed(one.items()):
                left += (member, name)
        elif isinstance(one, list):
            found.append((3,))
            left.append(_END)
            left += reversed(one)
        else:
            found.append((0, one))
    return found
