"""The command line: one command, ``edge``. It parses, calls and exits; the work is elsewhere.

Each subcommand lives in a module of :mod:`edge.commands` that is imported only when it is called, so that
``edge --help`` costs little more than Python itself and the daemon never loads what only fitting needs.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from edge.errors import EdgeError, Exit

# name -> (module, one line for the list): the list must not import the modules.
COMMANDS = {
    "demo": ("demo", "Everything in a minute, on the built-in synthetic line."),
    "fit": ("fit", "Fit a bundle on pictures of good parts."),
    "eval": ("evaluate", "Judge a bundle on labelled pictures."),
    "run": ("run", "Run the daemon: watch every camera, score every frame."),
    "watch": ("watch", "Follow verdicts and alerts of a running daemon."),
    "inspect": ("inspect", "Score pictures and write heat maps."),
    "ledger": ("ledger", "Show every camera's balance, also while no daemon runs."),
    "soak": ("soak", "A long run under SIGKILL, every promise checked."),
    "bench": ("bench", "Measure: wire, pipeline, start-up."),
    "engine": ("engine", "Export backbones to ONNX; list what is known."),
    "doctor": ("doctor", "What this machine has, and what would stop the daemon."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edge.commands.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from edge.version import VERSION

        click.echo(f"edge-inspect {VERSION}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Watch camera feeds for visual anomalies: fit on good parts, run on the device, alert whoever listens."""


def main() -> None:
    """Entry of the console script. A mistake a person can mend is one line on stderr and an exit code of the
    contract (:class:`edge.errors.Exit`); only our own faults show a traceback."""
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = Exit.USAGE
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except EdgeError as error:
        click.echo(f"edge: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:  # `edge watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    except OSError as error:
        # Disk full or a vanished folder in the middle of writing: whoever wrote left no half file behind.
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"edge: {where}{error.strerror or error}", err=True)
        code = Exit.NO_RESOURCE
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()
