"""`make kafka-up`: one broker in the foreground, for trying out, until Ctrl-C or SIGTERM.

The folder keeps port, secret and data, so that the next start goes on with them.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from deploy.kafka.broker import ADMIN, BrokerError, Ensemble, Place, brokers, planned


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make kafka-up", description=__doc__)
    parser.add_argument("--port", type=int, default=9092, help="for clients (9092)")
    parser.add_argument("--data", type=Path, default=Path("kafka-data"), help="(kafka-data)")
    given = parser.parse_args()
    os.umask(0o077)
    # Blocked from here on, so that none is lost: the broker itself hears of a stop from us.
    awaited = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        ensemble = kept(given.data, given.port)
        with brokers(given.data, ensemble) as (broker,):
            print(greeting(ensemble), flush=True)
            while signal.sigwait(awaited) == signal.SIGCHLD:
                if broker.process is not None and broker.process.poll() is not None:
                    raise BrokerError(f"the broker has ended; its log is {broker.log}")
    except (BrokerError, OSError) as problem:
        print(f"kafka-up: {problem}", file=sys.stderr)
        return 1
    return 0


def kept(data: Path, port: int) -> Ensemble:
    """The cluster of the folder; a new one if there is none yet."""
    path = data / "ensemble.json"
    with contextlib.suppress(FileNotFoundError):
        known = json.loads(path.read_text())
        return Ensemble(known["cluster"], known["secret"], (Place(**known["place"]),))
    made = planned(port=port)
    (place,) = made.places
    data.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"cluster": made.cluster, "secret": made.secret, "place": vars(place)})
    )
    return made


def greeting(ensemble: Ensemble) -> str:
    """What to do with it."""
    return (
        f"Kafka is ready. In another terminal:\n"
        f"  export DIVANDB_BOARD_ADMIN_PRINCIPAL={ADMIN}\n"
        f"  export DIVANDB_BOARD_ADMIN_SECRET={ensemble.secret}\n"
        f'  make up ARGS="--board {ensemble.url} --data divan-data-kafka"'
    )


if __name__ == "__main__":
    sys.exit(main())
