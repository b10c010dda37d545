"""What a client can be told at its start, each with its default. Times are seconds, unless the name
says otherwise.
"""

import dataclasses
import ssl

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Options:
    """How a client behaves."""

    direct: bool = True
    """Learn the nodes and talk to the closest ones; ``False``: to the URLs that were given alone,
    for clients that reach the nodes only through a proxy or the shared port.
    """
    zone: str = ""
    """Where this client is: nodes of the same zone are closest."""
    sessions: bool = True
    """Send a session token, so that every node shows what was written and seen before."""
    concern: str | None = None
    """``local``, ``board`` or ``visible``: when writes are answered; ``None``: the server's."""
    max_staleness_ms: int | None = None
    """Answers may be so old; ``None``: as old as the closest node's."""
    verify: ssl.SSLContext | bool = True
    """Whom to trust behind https URLs."""

    connections_max: int = 64
    """Connections at a time, to all nodes together."""
    keep_alive_s: float = 30.0
    """An idle connection is closed after this time: before the server does it."""
    pool_s_max: float = 10.0
    """The longest wait for a free connection."""
    connect_s_max: float = 2.0
    """The longest wait for a connection to open."""
    read_s_max: float = 10.0
    """The longest silence of a node that was asked for one document or a small answer."""
    write_s_max: float = 40.0
    """The longest silence after a write: nodes wait up to 30 s for a master, 10 s for a concern."""
    slow_s_max: float = 75.0
    """The longest silence after what may take long: queries, views, listings."""

    retry_s_max: float = 30.0
    """No further attempt of a call begins after this time."""
    attempts_max: int = 64
    """Attempts of one call."""
    pause_s_min: float = 0.05
    """The rest after all nodes were tried; it doubles each time,"""
    pause_s_max: float = 2.0
    """up to this."""
    down_s_min: float = 0.5
    """A node that failed is left out so long; twice as long each time,"""
    down_s_max: float = 30.0
    """up to this, or until it answers a probe."""

    probe_every_s: float = 10.0
    """Between two measurements of all nodes, in the background."""
    probe_s_max: float = 1.0
    """A node that does not answer a probe within this time is down."""
    refresh_every_s: float = 30.0
    """Between two looks at who the members are; at once when a node failed."""
    nodes_max: int = 256
    """Members that are kept in mind."""
    spare_masters_ms: float = 5.0
    """For reads a master counts as so much farther than it is, since masters have the writes."""
    lag_ms_max: float = 10_000.0
    """A node whose view may be older than this is read from only if no other is up."""

    heartbeat_s: float = 5.0
    """A live feed says so often that it lives; after three times this in silence it is dead."""
    feed_tries_max: int = 32
    """A feed that breaks so often without a change in between ends with an error."""
    page_rows: int = 1000
    """Rows, changes and documents that iterators ask for at a time."""
    answer_bytes_max: int = 512 * MIB
    """One answer that is not streamed."""

    def __post_init__(self) -> None:
        if self.concern not in (None, "local", "board", "visible"):
            raise ValueError(f"concern must be local, board or visible, not {self.concern!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and field.name not in _MAY_BE_0 and value <= 0:
                raise ValueError(f"{field.name} must be greater than 0, not {value!r}")


_MAY_BE_0 = ("max_staleness_ms", "spare_masters_ms")
