"""Keep Kafka's classes as Java has them in memory, beside the jars: brokers then start with two
thirds of the CPU. `.ci/setup kafka` does it once. Java leaves an archive alone that is not of these
jars.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from deploy.kafka.broker import ADMIN, BrokerError, Ensemble, brokers, planned
from divandb import localkafka
from divandb.board.base import BoardError
from divandb.board.kafka import KafkaBoard
from divandb.config import BoardAccess

TOPIC = "archive"


def main() -> int:
    """The exit status."""
    try:
        archive = localkafka.jars_of(os.environ) / localkafka.ARCHIVE
        archive.unlink(missing_ok=True)
        made = archive.with_suffix(".new")
        os.environ["JDK_JAVA_OPTIONS"] = f"-XX:ArchiveClassesAtExit={made}"
        with tempfile.TemporaryDirectory() as folder:
            ensemble = planned()
            with brokers(Path(folder), ensemble):
                asyncio.run(_used(ensemble))
        made.replace(archive)
    except (BrokerError, BoardError, OSError) as problem:
        print(f"archive: {problem}", file=sys.stderr)
        return 1
    return 0


async def _used(ensemble: Ensemble) -> None:
    """What brokers are asked to do most."""
    board = KafkaBoard(BoardAccess(ensemble.url, ADMIN, ensemble.secret))
    try:
        await board.create_topic(TOPIC, 1, {ADMIN: frozenset()})
        await board.set_principal("m1", ensemble.secret)
        await board.publish(TOPIC, 0, [b"x"])
        await board.read(TOPIC, 0, 0, bytes_max=1, wait_s=1)
    finally:
        await board.close()


if __name__ == "__main__":
    sys.exit(main())
