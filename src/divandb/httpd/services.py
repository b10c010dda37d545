"""What handlers work with: the parts of the node, as the composition root made them."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from divandb.catalog import Catalog
from divandb.clock import Clock, Rng
from divandb.cluster.drain import Drain
from divandb.cluster.failover import Failover
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress
from divandb.cluster.snapshots import Shelf
from divandb.cluster.verifier import Verifier
from divandb.cluster.versions import Versions
from divandb.cluster.witness import Witness
from divandb.commands import Job
from divandb.config import Config, Limits
from divandb.designs import Designs
from divandb.entry import Entry
from divandb.finder import Finder
from divandb.httpd.authenticator import Authenticator
from divandb.httpd.forward import Forwarder
from divandb.httpd.standing import Standing
from divandb.replica import Replica
from divandb.replication.jobs import Jobs
from divandb.replication.watch import Watch
from divandb.settings import Settings
from divandb.telemetry import Log
from divandb.vector import Vector
from divandb.viewer import Viewer


@dataclasses.dataclass(frozen=True)
class Services:
    """One node, as HTTP sees it."""

    config: Config
    limits: Limits
    cluster: str
    catalog: Catalog
    replica: Replica
    designs: Designs
    finder: Finder
    viewer: Viewer
    functions: Callable[..., Awaitable[list[str]]]
    """Calls a function of a design document, as `views.engine.Engine.ask`."""
    entry: Entry
    settings: Settings
    authenticator: Authenticator
    clock: Clock
    rng: Rng
    log: Log
    stopping: asyncio.Event
    compact: Callable[[int], None]
    """Have a database compacted now."""
    compacting: Callable[[int], bool]
    """Is it being compacted?"""
    tidy: Callable[[int], None]
    """Have indexes of a database that nothing names removed now."""
    tasks: Callable[[], list[dict[str, object]]]
    """Background work under way, as `_active_tasks` shows it."""
    replications: Jobs
    watch: Watch
    progress: Progress
    peers: Peers
    standing: Standing
    snapshots: Shelf
    forwarder: Forwarder
    witness: Witness
    verifier: Verifier
    versions: Versions
    give: Callable[[Vector], AsyncIterator[bytes]]
    """What lies beyond a vector, in frames; raises ``Busy``."""
    carry_out: Callable[[Job], None]
    """Takes forwarded writes, while this node accepts any."""
    failover: Failover
    drain: Drain
    condition: Callable[[], dict[str, object]]
    """What `divandb status` shows of this node."""
    is_ready: Callable[[], bool]
    """Is everything here, or was it, that a cluster has from the beginning?"""
    numbers: Callable[[], dict[str, float]]
    """The process's numbers by name, with the unit in the name."""
    want: Callable[[Iterable[bytes]], None] = lambda names: None
    hottest: Callable[[], list[tuple[str, int, str]]] = list
    """(database, generation, id) of the documents that are read most here."""
    """Has attachments fetched that a read has found missing; of a single node there are none."""
