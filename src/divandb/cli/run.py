"""`divandb node` and `divandb board`: one process of a cluster over several hosts."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from divandb import standalone
from divandb.board.base import BoardError
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
    with one_line_errors():
        standalone.run_node(read_node(path, os.environ), SystemClock())


class _Kafka(click.Group):
    """Loads the commands about Kafka only when they are asked for: the board runs for long."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["init", "check"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(importlib.import_module("divandb.cli.kafka"), cmd_name)
        return command


@click.group(cls=_Kafka, invoke_without_command=True)
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Its TOML file, as `divandb up --print-config` writes one.",
)
@click.pass_context
def board(context: click.Context, path: Path | None) -> None:
    """Run an embedded Event Board in the foreground, until SIGTERM or Ctrl-C.

    At SIGHUP it reads its members from the file again. Variables DIVANDB_BOARD_... go over what the
    file says. The commands set up and check boards on Apache Kafka.
    """
    if context.invoked_subcommand is not None:
        if path is not None:
            raise click.UsageError(f"--config goes behind {context.invoked_subcommand}.")
        return
    if path is None:
        raise click.UsageError("Missing option '--config'.")
    with one_line_errors():
        standalone.run_board(path, os.environ)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Expected errors end the command with a line."""
    os.umask(0o077)  # what a process writes is for its owner only
    try:
        yield
    except (
        ConfigFileError, StartError, DataDirError, InUse, UnknownFormat, DivanError, BoardError,
        TlsError,
        OSError,
    ) as problem:  # fmt: skip
        raise click.ClickException(str(problem)) from None
