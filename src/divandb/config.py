"""What an operator can set: where things are, and every bound.

Each limit is in the unit that its name ends with. Any of them can be set by an environment variable
``DIVANDB_<NAME>`` (``DIVANDB_BODY_BYTES_MAX=1000000``). ``docs/operations.md`` lists them all.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Keys:
    """What a node knows of the cluster's secrets, all derived from one: see ``cluster.trust``."""

    cluster: str = ""
    """The cluster's uuid, 32 hex digits; empty lets the first node choose."""
    cookies: str = ""
    """Signs session cookies until an operator sets another secret."""
    token: str = ""
    """This node's credential on peer links."""
    members: bytes = b""
    """Tells members from others."""
    masters: bytes = b""
    """Tells masters from replicas; known to masters alone."""


@dataclasses.dataclass(frozen=True)
class Spare:
    """What a node shows in the role that it has not: see ``cluster.trust``."""

    token: str
    """Its credential on peer links."""
    masters: bytes
    """Tells masters from replicas; empty for what a replica shows."""
    principal: str
    """Who it is on the boards then."""
    secret: str
    """That principal's."""


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
    hot_bytes_max: int = 16 * MIB
    """Frequently read documents that a node keeps at hand; 0: none."""
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
    heartbeat_ms: int = 250
    """Between two heartbeats on a peer link."""
    lease_ms: int = 2_000
    """A node that nobody has answered for so long no longer knows how old its view is."""
    silent_slot_ms: int = 3_000
    """A slot whose owner is silent for so long is named in ``Divan-Silent``, not in the lag."""
    failover_ms: int = 1_000
    """A replica takes its slot over when the owner has been silent for so long. A false alarm makes
    it twice as long for a while.
    """
    gap_patience_ms: int = 1_000
    """What a peer has and the board does not bring is asked for after this time."""
    session_wait_ms: int = 1_000
    """A read or write waits so long for what its session wrote elsewhere."""
    concern_wait_ms_max: int = 10_000
    """The longest wait for write concern ``board`` or ``visible``, and for a `_local` write."""
    forward_wait_ms_max: int = 30_000
    """A forwarded request without an answer is given up after this time."""
    forward_silence_ms: int = 250
    """A master that answers nothing for so long is passed over, as long as another one lives."""
    forward_requests_max: int = 2
    """Requests with forwarded writes that are under way to one master; more writes share them."""
    catch_ups_max: int = 16
    """Catch-ups that a node answers at a time."""
    relay_bytes_max: int = 8 * MIB
    """Events of others that wait for a Replicas' Board; more hold their applier."""
    background_share: float = 0.0
    """The share of its time that a node may use for replication, copies, indexes and upkeep; 0: as
    much as it can spare, which it finds out by itself."""
    background_share_min: float = 0.2
    """The least that it uses for them while clients ask."""
    lag_max_ms: int = 60_000
    """When a node's view is older, it uses more for replication, though that hurts its clients."""
    snapshot_kept_s: int = 600
    """A copy of the file that was made for another node is kept so long after its last use."""
    snapshot_behind_max: int = 200_000
    """A node that lacks more writes than this copies a peer's file instead of catching up."""
    snapshot_downloads_max: int = 4
    """Nodes that copy this node's file at a time; one more is a 503."""
    starved_ms_max: int = 1_500
    """A process behind the clients' port that shows no life, and is not stopped, keeps its place on
    the port so long: it may only be waiting for a core.
    """
    verify_every_s: int = 30
    """Between two comparisons with another node."""
    verify_rows_every_s: int = 86_400
    """All rows are read so often, to see whether they are what was written."""
    verify_share_max: float = 0.05
    """The share of its time that reading rows may use, unless somebody waits for it."""
    finds_max: int = 64
    """Queries that a node answers at a time; one more is a 503."""
    find_ms_max: int = 60_000
    """A query that has not been answered after this time is given up."""
    replication_jobs_max: int = 100
    """Replications that a node runs at a time; others of `_replicator` wait, others of `_replicate`
    are a 503."""
    replication_docs_max: int = 10_000
    """Documents of `_replicator` that are looked at."""
    replication_batch_docs: int = 500
    """Changes that a replication asks its source for at a time."""
    replication_backoff_ms: int = 5_000
    """A replication that failed begins anew after this time, and twice as long after each failure
    more."""
    replication_backoff_ms_max: int = 600_000
    """It is never longer than this."""
    view_wait_docs_max: int = 1_000
    """A query of a view whose design document has changed waits for the new version in a database
    of up to so many documents. In larger ones the version before answers until the group switches,
    if the group has more nodes than one."""
    view_switch_s_max: int = 60
    """A group waits so long for a replica whose index of a new version does not grow."""
    index_share_max: float = 0.3
    """The share of its time that building indexes may use while clients ask."""
    function_ms_max: int = 5_000
    """A function of a design document may use a core so long for one document; CouchDB's
    `os_process_timeout`."""
    function_memory_bytes_max: int = 64 * MIB
    """The memory that the functions of one design document may use."""
    function_idle_s_max: int = 60
    """A process that runs functions ends when nobody has needed it for so long."""
    join_wait_ms: int = 1_500
    """A node that starts waits so long to hear what others have, before it opens its file."""


MAY_BE_ZERO = frozenset({"background_share", "hot_bytes_max"})
"""For these 0 has a meaning of its own."""

MASTER = "master"
REPLICA = "replica"


@dataclasses.dataclass(frozen=True)
class Member:
    """A node of the cluster, as others know it."""

    name: str
    role: str
    """``MASTER`` or ``REPLICA``."""
    slot: str
    """The slot that a master holds, or whose master a replica follows."""
    url: str
    """The node's own port, as other nodes reach it."""
    zone: str = ""
    """Where it is; may be empty. Nodes of one zone are closer to each other than any others."""


SECURITIES = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")


@dataclasses.dataclass(frozen=True)
class KafkaAccess:
    """How the brokers of an Apache Kafka cluster are spoken to, besides name and secret."""

    security: str = "sasl_plaintext"
    """One of ``SECURITIES``."""
    mechanism: str = "SCRAM-SHA-256"
    """Of SASL: one of ``MECHANISMS``."""
    ca: Path | None = None
    """PEM file with the certificates that vouch for the brokers; ``None``: those of the system."""
    certificate: Path | None = None
    """PEM file with this client's certificate and its chain, for brokers that ask for one."""
    certificate_key: Path | None = None
    """PEM file with that certificate's key; ``None``: it stands in the same file."""

    @property
    def has_sasl(self) -> bool:
        """Does a client prove who it is by name and secret?"""
        return self.security.startswith("sasl_")

    @property
    def has_tls(self) -> bool:
        """Do clients come by TLS?"""
        return self.security.endswith("ssl")

    @property
    def has_scram(self) -> bool:
        """Can an admin make principals known?"""
        return self.has_sasl and self.mechanism.startswith("SCRAM")

    @property
    def has_principals(self) -> bool:
        """Do clients prove who they are at all, so that rights mean something?"""
        return self.security != "plaintext"


@dataclasses.dataclass(frozen=True)
class TopicSettings:
    """How topics on Apache Kafka are made."""

    replication_factor: int = 0
    """Copies of each partition; 0: as many as the brokers make by default."""
    min_insync_replicas: int = 0
    """Copies that must have a message before it counts as published; 0: the brokers' default."""
    retention_ms: int = 7 * 24 * 3600 * 1000
    """The age above which a segment is removed."""
    retention_bytes: int = 1024 * MIB
    """What a partition keeps."""
    message_bytes_max: int = 1 * MIB
    """The largest message that it takes. Nodes send none above 1 MiB."""


KAFKA = "kafka://"
"""How the URL of a board on Apache Kafka begins: ``kafka://HOST:PORT[,HOST:PORT]…``."""


@dataclasses.dataclass(frozen=True)
class BoardAccess:
    """How a node opens the Event Boards."""

    url: str
    principal: str
    secret: str
    kafka: KafkaAccess = KafkaAccess()
    """Of a ``KAFKA`` URL."""

    @property
    def is_kafka(self) -> bool:
        """Is it Apache Kafka, and not the embedded board?"""
        return self.url.startswith(KAFKA)


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """PEM files."""

    certificate: Path | None = None
    """What a process shows on its ports, its own certificate first; ``None``: no TLS there."""
    certificate_key: Path | None = None
    """The key; ``None``: it stands in ``certificate``."""
    ca: Path | None = None
    """Whom it trusts behind an https URL; ``None``: whom the system trusts."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One node's configuration."""

    data: Path
    """The folder that holds the node's file."""
    name: str = "m1"
    role: str = MASTER
    slot: str = "m1"
    url: str = ""
    """The node's own port, as other nodes reach it."""
    zone: str = ""
    """Where the node is; may be empty."""
    admin: str | None = None
    """`USER:PASSWORD` of a server admin that exists whatever the stored configuration says."""
    board: BoardAccess | None = None
    """``None``: a single node, which has nobody to tell."""
    keys: Keys = Keys()
    spare: Spare | None = None
    """For the other role, if the slot's owner changes; ``None`` at a replica: it takes the slot
    over only while another master lives that grants it.
    """
    spare_certificate: TlsFiles = TlsFiles()
    """What it shows then to brokers for whom a certificate is a principal."""
    tls: TlsFiles = TlsFiles()
    seeds: tuple[Member, ...] = ()
    """Members that are asked first; they name the others."""
    founding: bool = False
    """Nobody is ahead of this node: it starts together with the whole cluster."""
    limits: Limits = dataclasses.field(default_factory=Limits)

    @functools.cached_property
    def member(self) -> Member:
        """This node."""
        return Member(self.name, self.role, self.slot, self.url, self.zone)


def limits_from(environment: Mapping[str, str] = os.environ) -> Limits:
    """``Limits`` with what ``DIVANDB_…`` variables set; raises ``ValueError`` that names the
    variable.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(Limits):
        variable = f"DIVANDB_{field.name.upper()}"
        if variable in environment:
            changes[field.name] = number(variable, environment[variable], type(field.default))
    return dataclasses.replace(Limits(), **changes)


def is_allowed(setting: str, value: float) -> bool:
    """May a setting of this name be such a number?"""
    return 0 < value < math.inf or (value == 0 and setting in MAY_BE_ZERO)


def number(variable: str, text: str, kind: type[Any]) -> Any:
    """The number of this kind in a variable's text; raises ``ValueError`` that names it."""
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be a number, not {text!r}") from None
    if not is_allowed(variable.removeprefix("DIVANDB_").lower(), value):
        raise ValueError(f"{variable} must be a number greater than 0")
    return value
