"""What handlers work with: the parts of the node, as the composition root made them."""

import asyncio
import dataclasses
from collections.abc import Callable

from divandb.catalog import Catalog
from divandb.clock import Clock, Rng
from divandb.config import Config, Limits
from divandb.entry import Entry
from divandb.httpd.authenticator import Authenticator
from divandb.replica import Replica
from divandb.settings import Settings
from divandb.telemetry import Log


@dataclasses.dataclass(frozen=True)
class Services:
    """One node, as HTTP sees it."""

    config: Config
    limits: Limits
    cluster: str
    catalog: Catalog
    replica: Replica
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
    tasks: Callable[[], list[dict[str, object]]]
    """Background work under way, as `_active_tasks` shows it."""
    numbers: Callable[[], dict[str, float]]
    """The process's numbers by name, with the unit in the name."""
