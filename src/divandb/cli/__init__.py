"""The `divandb` command: one module a command; each parses, calls and prints."""

import gc
import importlib
import sys

import click

COMMANDS = {
    "up": "divandb.cli.up:up",
    "status": "divandb.cli.status:status",
    "verify": "divandb.cli.verify:verify",
    "promote": "divandb.cli.owners:promote",
    "demote": "divandb.cli.owners:demote",
    "drain": "divandb.cli.drain:drain",
    "receipts": "divandb.cli.owners:receipts",
    "drill": "divandb.cli.drill:drill",
    "add": "divandb.cli.add:add",
    "remove": "divandb.cli.remove:remove",
    "node": "divandb.cli.run:node",
    "board": "divandb.cli.run:board",
    "events": "divandb.cli.events:events",
    "import": "divandb.cli.transfer:import_",
    "export": "divandb.cli.transfer:export",
}


class _Commands(click.Group):
    """Loads only the command that is asked for, so that `up` stays small for its whole life."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        gc.disable()  # nothing that modules make is garbage
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        finally:
            gc.enable()
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="divandb", prog_name="divandb")
def divandb() -> None:
    """DivanDB, a document database that speaks the CouchDB HTTP API."""


def main() -> None:
    """The process's entry point: every expected error is one line on stderr."""
    try:
        sys.exit(divandb.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except click.ClickException as problem:
        click.echo(f"divandb: {problem.format_message()}", err=True)
        sys.exit(problem.exit_code)
    except click.Abort:
        click.echo("divandb: stopped", err=True)
        sys.exit(130)
