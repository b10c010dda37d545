"""`divandb node` and `divandb board`: one process of a cluster over several hosts."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from divandb import standalone
from divandb.board.embedded_server import InUse
from divandb.board.topics import UnknownFormat
from divandb.clock import SystemClock
from divandb.configfile import ConfigFileError, read_node
from divandb.datadir import DataDirError
from divandb.errors import DivanError
from divandb.supervisor import StartError
from divandb.tls import TlsError

CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Its TOML file, as `divandb up --print-config` writes one.",
)


@click.command()
@CONFIG
def node(path: Path) -> None:
    """Run one node in the foreground, until SIGTERM or Ctrl-C.

    Variables DIVANDB_... go over what the file says.
    """
    with _one_line_errors():
        standalone.run_node(read_node(path, os.environ), SystemClock())


@click.command()
@CONFIG
def board(path: Path) -> None:
    """Run an embedded Event Board in the foreground, until SIGTERM or Ctrl-C.

    At SIGHUP it reads its members from the file again. Variables DIVANDB_BOARD_... go over what the
    file says.
    """
    with _one_line_errors():
        standalone.run_board(path, os.environ)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    os.umask(0o077)  # what a process writes is for its owner only
    try:
        yield
    except (
        ConfigFileError, StartError, DataDirError, InUse, UnknownFormat, DivanError, TlsError,
        OSError,
    ) as problem:  # fmt: skip
        raise click.ClickException(str(problem)) from None
