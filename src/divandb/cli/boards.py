"""Boards on Apache Kafka, before nodes use them: set up if there is an admin, checked otherwise."""

import os
import subprocess
import sys
from pathlib import Path

from divandb.config import BoardAccess
from divandb.configfile import kafka_given
from divandb.hosts import nobody


def set_up(data: Path, url: str) -> BoardAccess:
    """Have the boards at ``url`` ready for the nodes that the folder names; how nodes open them.

    A process of its own does it, and says what is wrong: nodes are forked from this one, which may
    not have librdkafka's threads. Raises ``ValueError``.
    """
    admin, _ = kafka_given(url, os.environ)
    if admin.kafka.has_principals and not admin.kafka.has_sasl:
        raise ValueError("nodes of one machine need names: set DIVANDB_BOARD_SECURITY to sasl_ssl")
    is_able = bool(admin.principal) or not admin.kafka.has_principals
    command = [sys.executable, "-m", "divandb", "board", "init" if is_able else "check"]
    command += ["--data", str(data), "--board", url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        hint = "" if is_able else "; with DIVANDB_BOARD_ADMIN_SECRET they are set up"
        raise ValueError(f"the boards at {url} are not as they should be, see above{hint}")
    return nobody(admin)
