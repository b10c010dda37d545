"""What an operator can set: where things are, and every bound.

Each limit is in the unit that its name ends with. Any of them can be set by an environment variable
``DIVANDB_<NAME>`` (``DIVANDB_BODY_BYTES_MAX=1000000``). ``docs/operations.md`` lists them all.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Every bound on what a client or the node itself may use."""

    body_bytes_max: int = 64 * MIB
    """A request body that is JSON; CouchDB's `max_http_request_size`."""
    document_bytes_max: int = 8 * MIB
    """One document without its attachments; CouchDB's `max_document_size`."""
    attachment_bytes_max: int = 1024 * MIB
    """One attachment."""
    attachments_max: int = 1000
    """Attachments of one document."""
    inline_attachment_bytes_max: int = 1 * MIB
    """An attachment above this size is stored and sent in chunks, never whole in memory."""
    bulk_docs_max: int = 100_000
    """Documents of one `_bulk_docs` or `_bulk_get`, keys of one `_all_docs`, rows of a
    `_revs_diff`.
    """
    header_bytes_max: int = 32 * 1024
    """All header lines of a request."""
    connections_max: int = 4096
    """Client connections at a time."""
    keep_alive_s: int = 75
    """An idle connection is closed after this time."""
    write_queue_jobs_max: int = 4096
    """Writes that wait for the writer; one more is a 503."""
    write_queue_bytes_max: int = 256 * MIB
    """The same in bytes."""
    group_commit_jobs_max: int = 256
    """Writes that share a transaction."""
    group_commit_bytes_max: int = 16 * MIB
    """The same in bytes."""
    feeds_max: int = 1024
    """`_changes` feeds that wait at a time."""
    feed_heartbeat_ms_min: int = 100
    """A shorter heartbeat is taken as this."""
    feed_timeout_ms_max: int = 60_000
    """The longest, and the default, wait of a feed without a heartbeat."""
    revs_limit: int = 1000
    """Revisions of ancestry that a new database keeps a leaf."""
    uuids_max: int = 1000
    """The most that `_uuids?count=` gives."""
    login_queue_max: int = 64
    """Password checks that wait for a thread; one more is a 503."""
    wal_bytes_max: int = 256 * MIB
    """A write-ahead log above this size is emptied even if that makes writers wait."""
    sqlite_cache_bytes_max: int = 16 * MIB
    """Pages that each SQLite connection keeps in memory."""
    compact_step_ms_max: int = 20
    """The longest step of background work on the writer's thread."""
    old_revisions_bytes_min: int = 16 * MIB
    """Bodies of old revisions below this size are left alone until `_compact`."""
    old_revisions_share_max: float = 0.5
    """Above this share of a database's bytes, bodies of old revisions are dropped."""
    unused_blob_age_s: int = 3600
    """An attachment that no revision refers to is kept this long."""
    outbox_rows_max: int = 100_000
    """Outbox rows that are kept when there is no board to publish to."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One node's configuration."""

    data: Path
    """The folder that holds the node's file."""
    name: str = "m1"
    """The slot."""
    host: str = "127.0.0.1"
    port: int = 5984
    """The shared client port."""
    node_port: int = 0
    """The node's own port; 0 lets the system choose."""
    admin: str | None = None
    """`USER:PASSWORD` of a server admin that exists whatever the stored configuration says."""
    limits: Limits = dataclasses.field(default_factory=Limits)


def limits_from(environment: Mapping[str, str] = os.environ) -> Limits:
    """``Limits`` with what ``DIVANDB_…`` variables set; raises ``ValueError`` that names the
    variable.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(Limits):
        variable = f"DIVANDB_{field.name.upper()}"
        if variable in environment:
            changes[field.name] = _number(variable, environment[variable], type(field.default))
    return dataclasses.replace(Limits(), **changes)


def _number(variable: str, text: str, kind: type[Any]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be a number, not {text!r}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{variable} must be a number greater than 0")
    return value
