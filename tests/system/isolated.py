"""A cluster whose processes are each on a host of their own, in network namespaces."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from divandb import datadir
from divandb.cli.lab import Lab, lab
from divandb.config import Limits
from tests.running import BOARD, Cluster


class Isolated(Cluster):
    """What tests do with a cluster, for a ``Lab``. Whoever uses it is on a host that is never cut
    off unless a test says so.
    """

    def __init__(self, made: Lab, masters: int, replicas: int) -> None:
        super().__init__(made.folder, masters, replicas)
        self.lab = made
        self.data = made.folder
        self.credentials = datadir.read_admin(made.folder) or ""
        self._urls = {one.name: urlsplit(one.url) for one in made.members}

    def address_of(self, name: str | None) -> tuple[str, int]:
        found = self._urls[name or self.replicas[-1]]
        return found.hostname or "", found.port or 0

    def beside(self, name: str | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if name is None else self.lab.hosts.on(name)

    def pid_of(self, name: str) -> int:
        return self.lab.pid(name)

    def await_true(self, condition: Any, wait_s_max: float = 60.0) -> None:
        with contextlib.suppress(AssertionError):
            self.log.touch()
            super().await_true(condition, wait_s_max)
            return
        raise AssertionError(f"not within {wait_s_max} s: {self.logs()}")

    def logs(self) -> str:
        """What all processes have said."""
        names = [BOARD, *self.nodes]
        return "\n".join(self.lab.log(name).read_text(errors="replace") for name in names)

    def receipts(self, node: str) -> list[dict[str, Any]]:
        """What a node says of writes that came back."""
        status, body = self.request("GET", "/_divan/receipts", node=node)
        assert status == 200, body
        found: list[dict[str, Any]] = body["receipts"]
        return found


@contextlib.contextmanager
def isolated(folder: Path, masters: int, replicas: int) -> Iterator[Isolated]:
    """A cluster in ``folder`` that is stopped at the end, each process in order."""
    with lab(folder, masters, replicas, Limits()) as made:
        cluster = Isolated(made, masters, replicas)
        yield cluster
        ended = made.end()
        assert not any(ended.values()), (ended, cluster.logs())
        assert "Traceback" not in cluster.logs(), cluster.logs()


def ids_in(receipts: list[dict[str, Any]]) -> set[str]:
    """The documents that receipts name."""
    return {one["id"] for receipt in receipts for one in receipt["documents"]}
