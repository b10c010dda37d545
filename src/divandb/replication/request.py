"""What a replication is: the object that `_replicate` takes and documents of `_replicator` hold.

Pure. A side is a URL, an object with one, or the name of a database here. Credentials are taken out
of URLs at once: what is shown, logged and hashed has none.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec
import orjson

from divandb.auth.policy import UserContext
from divandb.errors import BadRequest

CHECKPOINT_INTERVAL_MS = 30_000
CHECKPOINT_INTERVAL_MS_MIN = 100
FRAMING = frozenset({"connection", "content-length", "host", "transfer-encoding"})
"""Headers that are ours alone."""
FILTERS = ("doc_ids", "filter", "selector")


class Side(msgspec.Struct, frozen=True):
    """Source or target."""

    url: str
    """Without credentials and with a slash at its end; "" for a database here."""
    database: str = ""
    """The name of a database here."""
    headers: Mapping[str, str] = {}
    """Sent with each request, by names in lower case."""
    user: str = ""
    """Who logs in there."""

    @property
    def shown(self) -> str:
        """For people: no credentials in it."""
        return self.url or self.database

    @property
    def key(self) -> list[object]:
        """What tells it from others. A new password makes no other side."""
        kept = {name: text for name, text in self.headers.items() if name != "authorization"}
        return [self.url, self.database, self.user, sorted(kept.items())]


class Replication(msgspec.Struct, frozen=True):
    """One replication, checked."""

    source: Side
    target: Side
    user: UserContext
    """As whom databases here are read and written."""
    continuous: bool = False
    create_target: bool = False
    create_target_params: Mapping[str, Any] = {}
    doc_ids: tuple[str, ...] | None = None
    selector: Mapping[str, Any] | None = None
    filter: str | None = None
    query_params: Mapping[str, Any] = {}
    since_seq: str | int | None = None
    use_checkpoints: bool = True
    checkpoint_interval_ms: int = CHECKPOINT_INTERVAL_MS
    winning_revs_only: bool = False

    @property
    def style(self) -> str:
        """Of `_changes`: all leaves, or winners only."""
        return "main_only" if self.winning_revs_only else "all_docs"

    def id(self, cluster: str) -> str:
        """The name of its checkpoints: the same on every node of a cluster, 32 hex digits."""
        parts: list[object] = [cluster, self.source.key, self.target.key]
        for part in (self.doc_ids, self.selector, self.filter):
            parts.append(part)
        parts += [self.query_params if self.filter else None, self.winning_revs_only]
        packed = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        return hashlib.md5(packed, usedforsecurity=False).hexdigest()

    def job_id(self, cluster: str) -> str:
        """The name of the job, as CouchDB makes it of the id."""
        ends = [("continuous", self.continuous), ("create_target", self.create_target)]
        return self.id(cluster) + "".join(f"+{name}" for name, is_on in ends if is_on)


def parse(value: Any, user: UserContext) -> Replication:
    """The replication that an object describes; raises ``BadRequest``."""
    if not isinstance(value, dict):
        raise BadRequest("Request body must be a JSON object")
    for name in ("proxy", "source_proxy", "target_proxy"):
        if value.get(name) is not None:
            raise BadRequest(f"`{name}` is not supported.")
    if sum(value.get(name) is not None for name in FILTERS) > 1:
        raise BadRequest("`doc_ids`, `filter` and `selector` are mutually exclusive.")
    interval_ms = value.get("checkpoint_interval")
    if interval_ms is None:
        interval_ms = CHECKPOINT_INTERVAL_MS
    if not isinstance(interval_ms, int) or isinstance(interval_ms, bool) or interval_ms < 0:
        raise BadRequest("`checkpoint_interval` must be a whole number of milliseconds.")
    doc_ids = _typed(value, "doc_ids", list)
    if doc_ids is not None and not all(isinstance(one, str) for one in doc_ids):
        raise BadRequest("`doc_ids` must be a list of strings.")
    return Replication(
        source=_side(value, "source"),
        target=_side(value, "target"),
        user=user,
        continuous=_flag(value, "continuous"),
        create_target=_flag(value, "create_target"),
        create_target_params=_typed(value, "create_target_params", dict) or {},
        doc_ids=None if doc_ids is None else tuple(sorted(set(doc_ids))),
        selector=_typed(value, "selector", dict),
        filter=_typed(value, "filter", str),
        query_params=_typed(value, "query_params", dict) or {},
        since_seq=_since(value),
        use_checkpoints=_flag(value, "use_checkpoints", default=True),
        checkpoint_interval_ms=max(interval_ms, CHECKPOINT_INTERVAL_MS_MIN),
        winning_revs_only=_flag(value, "winning_revs_only"),
    )


def _since(value: dict[str, Any]) -> str | int | None:
    since = value.get("since_seq")
    if since is not None and (not isinstance(since, str | int) or isinstance(since, bool)):
        raise BadRequest("`since_seq` must be a sequence.")
    return since


def _flag(value: dict[str, Any], name: str, *, default: bool = False) -> bool:
    found = value.get(name)
    if found is None:
        return default
    if not isinstance(found, bool):
        raise BadRequest(f"`{name}` must be true or false.")
    return found


def _typed(value: dict[str, Any], name: str, kind: type) -> Any:
    found = value.get(name)
    if found is not None and not isinstance(found, kind):
        raise BadRequest(f"`{name}` has the wrong type.")
    return found


def _side(value: dict[str, Any], name: str) -> Side:
    given = value.get(name)
    if isinstance(given, str):
        given = {"url": given}
    if not isinstance(given, dict) or not isinstance(given.get("url"), str) or not given["url"]:
        raise BadRequest(f"`{name}` must be a URL, an object with a `url`, or a database here.")
    headers = _typed(given, "headers", dict) or {}
    if not all(_is_header(*pair) for pair in headers.items()):
        raise BadRequest(f"The headers of `{name}` must be strings in printable ASCII.")
    headers = {key.lower(): text for key, text in headers.items()}
    if FRAMING & set(headers):
        raise BadRequest(f"Some headers of `{name}` are not for others to choose.")
    if "://" not in given["url"]:
        return Side("", given["url"])
    url, user, password = _split(name, given["url"])
    basic = (_typed(given, "auth", dict) or {}).get("basic")
    if isinstance(basic, dict):
        user, password = str(basic.get("username", "")), str(basic.get("password", ""))
    if user and "authorization" not in headers:
        pair = b64encode(f"{user}:{password}".encode()).decode()
        headers = {**headers, "authorization": f"Basic {pair}"}
    return Side(url, "", headers, user)


def _is_header(name: str, text: object) -> bool:
    if not isinstance(text, str) or not name:
        return False
    return all(" " <= char <= "~" for char in name + text) and not set(" :") & set(name)


def _split(name: str, url: str) -> tuple[str, str, str]:
    """(URL without credentials, user, password)"""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise BadRequest(f"The URL of `{name}` cannot be read.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
        raise BadRequest(f"`{name}` must be an http or https URL of a database.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    bare = urlunsplit((parts.scheme, host + port, parts.path.rstrip("/") + "/", "", ""))
    return bare, unquote(parts.username or ""), unquote(parts.password or "")
