"""Boards on Apache Kafka, before nodes use them: set up if there is an admin, checked otherwise."""

import os
import subprocess
import sys
from pathlib import Path

from divandb import localkafka
from divandb.config import BoardAccess, TopicSettings
from divandb.configfile import ConfigFileError, kafka_given
from divandb.localkafka import LOCAL

WRONG = 1
"""The exit status of `divandb board init` and `check` if nodes cannot work there."""
POOR = 3
"""If they can, and something is not as it was asked for."""
SILENT = 75
"""If no broker answers: another time it may."""


def given(data: Path, url: str) -> tuple[BoardAccess, TopicSettings]:
    """Boards on Kafka as the environment describes them, or as the folder does if they are on its
    own broker: the admin, and how topics are made. Raises ``ConfigFileError`` or ``DataDirError``.
    """
    if url == LOCAL:
        own = localkafka.known(data)
        if own is None:
            raise ConfigFileError(f"{data} has no Kafka broker: `divandb up --board {LOCAL}`")
        url = own.url
    return kafka_given(url, localkafka.around(data, url, os.environ))


def check_admin(data: Path, url: str) -> None:
    """Raises ``ConfigFileError`` if rights on the boards cannot be changed from here, for want of
    an admin.
    """
    admin, _ = given(data, url)
    if admin.kafka.has_principals and not admin.principal:
        raise ConfigFileError("it takes an admin: set DIVANDB_BOARD_ADMIN_SECRET")


def set_up(data: Path, url: str, *, is_new: bool) -> None:
    """Have the boards at ``url`` ready for the nodes that the folder names.

    A process of its own does it, and says what is wrong: nodes are forked from this one, which may
    not have librdkafka's threads. Where no broker answers, a cluster that is not new goes on all
    the same. Raises ``ValueError``.
    """
    admin, _ = given(data, url)
    if admin.kafka.has_principals and not admin.kafka.has_sasl:
        raise ValueError("nodes of one machine need names: set DIVANDB_BOARD_SECURITY to sasl_ssl")
    is_able = bool(admin.principal) or not admin.kafka.has_principals
    command = [sys.executable, "-m", "divandb", "board", "init" if is_able else "check"]
    command += ["--data", str(data), "--board", url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, POOR) and (is_new or done.returncode != SILENT):
        hint = "" if is_able else "; with DIVANDB_BOARD_ADMIN_SECRET they are set up"
        raise ValueError(f"the boards at {url} are not as they should be, see above{hint}")
