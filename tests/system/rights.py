"""What the boards allow to whom."""

import asyncio
from collections.abc import Awaitable, Callable

from divandb.board.base import BoardError, EventBoard
from divandb.clock import SystemRng
from divandb.cluster import trust
from divandb.config import BoardAccess
from divandb.follow import open_board
from tests.running import BOARD, Cluster

MESSAGE = b"x"


def secret_of(cluster: Cluster) -> bytes:
    """The cluster's secret, which everything comes from."""
    return bytes.fromhex((cluster.data / "secret").read_text().strip())


def id_of(cluster: Cluster) -> str:
    """The cluster's id, which is in the names of topics."""
    return trust.keys_of(secret_of(cluster), "", "", "", is_master=False).cluster


class BoardClient:
    """The boards, with a principal's credentials; answers are HTTP's statuses."""

    def __init__(self, cluster: Cluster, secret: bytes, principal: str) -> None:
        self.cluster_id = trust.keys_of(secret, "", "", "", is_master=False).cluster
        broker = cluster.broker
        url = cluster.record(BOARD)["url"] if broker is None else broker.ensemble.url
        self._access = BoardAccess(url, principal, trust.board_secret(secret, principal))

    def read(self, topic: str, partition: int = 0) -> int:
        """The status of reading."""
        return self._asked(lambda board: board.read(topic, partition, 0, bytes_max=1, wait_s=0))

    def write(self, topic: str, partition: int = 0) -> int:
        """The status of writing."""
        return self._asked(lambda board: board.publish(topic, partition, [MESSAGE]))

    def describe(self, topic: str) -> int:
        """The status of asking about a topic."""
        return self._asked(lambda board: board.describe(topic))

    def _asked(self, ask: Callable[[EventBoard], Awaitable[object]]) -> int:
        async def run() -> int:
            board = open_board(self._access, SystemRng(), None)
            try:
                await ask(board)
            except BoardError as problem:
                return problem.status
            finally:
                await board.close()
            return 200

        return asyncio.run(run())
