"""`divandb up`: run the database until it is told to stop."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from divandb import datadir
from divandb.cli import options
from divandb.clock import SystemClock, SystemRng
from divandb.config import Config, limits_from
from divandb.server import serve
from divandb.supervisor import Bounds, StartError, Supervisor
from divandb.telemetry import LineLog


@click.command()
@click.option("--masters", type=int, default=1, show_default=True, help="Nodes that take writes.")
@click.option("--replicas", type=int, default=0, show_default=True, help="Readers per master.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5984,
    show_default=True,
    help="The port for clients; 0 takes a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@options.data
@click.option(
    "--admin",
    metavar="USER:PASSWORD",
    envvar="DIVANDB_ADMIN",
    show_envvar=True,
    callback=options.credentials,
    help="The admin of this start; never written down. Without it, DATA/admin is made and used.",
)
@click.option("--no-restart", is_flag=True, help="Leave a node that dies down.")
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Kill a node that has not ended this long after a stop.",
)
def up(
    masters: int,
    replicas: int,
    port: int,
    host: str,
    data: Path,
    admin: str | None,
    no_restart: bool,
    stop_timeout: float,
) -> None:
    """Run the database, and start its node again when it dies.

    SIGTERM or Ctrl-C stops it cleanly; a second Ctrl-C at once.
    """
    if (masters, replicas) != (1, 0):
        raise click.UsageError(
            "more than one node comes with the cluster release; this one runs one node, "
            "--masters 1 --replicas 0"
        )
    clock, bounds = SystemClock(), Bounds(stop_s_max=stop_timeout)
    os.umask(0o077)  # what the database writes is for its owner only
    with _one_line_errors():
        datadir.make(data)
        with datadir.locked(data, clock, orphan_s_max=bounds.stop_s_max):
            known = admin or datadir.make_admin(data, SystemRng())
            config = Config(
                data=data, host=host, port=port, admin=known, limits=limits_from(os.environ)
            )
            log = LineLog("supervisor", clock)
            supervisor = Supervisor(
                [config], serve, clock, log, restart=not no_restart, bounds=bounds
            )
            given = admin is not None
            status = supervisor.run(lambda now: click.echo(greeting(now.url, data, known, given)))
    sys.exit(status)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (StartError, datadir.DataDirError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None


def greeting(url: str, data: Path, admin: str, given: bool) -> str:
    """What is printed when the database answers: where it is, and how to log in."""
    user = admin.partition(":")[0]
    if given:
        password, login = "the one you gave", shlex.quote(user)
    else:
        file = data / "admin"
        password, login = f"in {file}", f'"$(cat {shlex.quote(str(file))})"'
    return (
        "DivanDB is ready.\n"
        f"  URL        {url}\n"
        f"  admin      {user}\n"
        f"  password   {password}\n"
        f"  log in     curl -u {login} {url}/_session"
    )
