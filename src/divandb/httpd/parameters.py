"""Parameters of listings and views: from a query string, or from JSON, in CouchDB's words."""

from collections.abc import Callable
from typing import Any

import orjson

from divandb.errors import BadRequest, QueryParseError
from divandb.httpd.call import encode_json

LIMIT_MAX = 10**15


def text(value: Any) -> str:
    """A value as an error shows it."""
    return encode_json(value).decode()


def boolean(value: Any) -> bool:
    """True or false; raises ``QueryParseError``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise QueryParseError(f"Invalid boolean parameter: {text(value)}")


def whole(value: Any) -> int:
    """A whole number from 0; raises ``QueryParseError``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise QueryParseError(f"Invalid value for integer: {text(value)}")
    if value < 0:
        raise QueryParseError(f"Invalid value for positive integer: {value}")
    return min(value, LIMIT_MAX)


def whole_text(value: Any) -> int:
    """The same for what stands in a query string."""
    digits = value.removeprefix("-").removeprefix("+") if isinstance(value, str) else ""
    if not digits.isascii() or not digits.isdigit() or len(digits) > 100:
        return whole(value)
    return whole(int(value))


def as_it_is(value: Any) -> Any:
    """A value that was JSON already."""
    return value


def json(text: Any) -> Any:
    """What a text is as JSON; raises ``BadRequest``."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRequest("invalid UTF-8 JSON") from None


def refuse_if(*refused: Any, reason: str) -> Callable[[Any], None]:
    """A check that lets all but these values pass."""

    def check(value: Any) -> None:
        if value in refused:
            raise QueryParseError(reason)

    return check


def one_of(*allowed: Any, name: str) -> Callable[[Any], None]:
    """A check that lets these values pass."""

    def check(value: Any) -> None:
        if value not in allowed:
            raise QueryParseError(f"Invalid value for `{name}`.")

    return check
