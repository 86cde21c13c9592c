"""The command line: `gptjobs`. Commands import what is heavy when they run, so that help is quick."""

import gc
import importlib
import os
import sys
from typing import Any

import click

from gptjobs import __version__, settings
from gptjobs.cli.output import CTRL_C
from gptjobs.cli.place import root_option
from gptjobs.errors import GptjobsError
from gptjobs.job import plain

_GARBAGE_FROM = 100_000
"""objects: what a command imports is no garbage, and looking through it, again and again, is a tenth of its time"""
_PAGE = 2000
"""characters of an error"""


class ReaderGone(Exception):
    """Whoever read the output, `head` say, has enough. click would call that a failure of the command."""


COMMANDS = {
    "submit": "submit.group",
    "watch": "watch.watch",
    "list": "jobs.list_jobs",
    "show": "show.show",
    "logs": "logs.logs",
    "explain": "explain.explain",
    "wait": "wait.wait",
    "cancel": "control.cancel",
    "pause": "control.pause",
    "unpause": "control.unpause",
    "retry": "control.retry",
    "priority": "control.priority",
    "repair": "control.repair",
    "sweep": "sweep.group",
    "diagnose": "diagnose.diagnose",
    "compare": "compare.compare",
    "plot": "plot.plot",
    "checkpoints": "checkpoints.group",
    "data": "data.group",
    "worker": "worker.group",
    "up": "up.up",
    "demo": "demo.demo",
    "doctor": "doctor.doctor",
    "notify": "notify.send",
    "completion": "completion.completion",
    "version": "up.version",
}
"""Each command's place in this package: it is imported when it is used. The order is that of work."""


class Commands(click.Group):
    """A group that imports its commands when they are used, and says what a mistyped one may have meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(importlib.import_module(f"gptjobs.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            self._suggest(ctx, args[0])
        return super().resolve_command(ctx, args)

    def _suggest(self, ctx: click.Context, mistyped: str) -> None:
        from difflib import get_close_matches

        close = get_close_matches(mistyped, self.list_commands(ctx), n=1)
        if close:
            ctx.fail(f"there is no command '{mistyped}'. Did you mean {close[0]}?")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@root_option
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def gptjobs(context: click.Context) -> None:
    """A job queue for GPT-2 training runs, whose workers know what a training run is.

    Start here: `gptjobs up` in a folder of its own, then `gptjobs submit train --help` in another terminal.
    Redis is that of the root's own `gptjobs up`, unless GPTJOBS_REDIS_URL names one.
    """
    context.color = False if settings.no_colour() else None


def main(arguments: list[str] | None = None) -> Any:
    """The process's edge: errors become words and exit codes."""
    gc.set_threshold(_GARBAGE_FROM)
    settings.import_nothing_from_here()
    try:
        code = gptjobs.main(args=arguments, prog_name="gptjobs", standalone_mode=False)
    except GptjobsError as error:
        code = _say(error.message, error.hint, error.exit_code)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "gptjobs"
        code = _say(error.format_message(), f"{where} --help", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = CTRL_C
    except ReaderGone:
        # nothing more can be said, also not at the interpreter's exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = _say(f"{error.filename or 'the system'}: {error.strerror or error}", None, GptjobsError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str, hint: str | None, code: int) -> int:
    """An error: what happened and what to type; at most a page, and nothing that drives the terminal."""
    message, hint = ("\n".join(map(plain, each.splitlines()))[:_PAGE] for each in (message, hint or ""))
    colour = False if settings.no_colour() else None
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True, color=colour)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {hint}", err=True, color=colour)
    return code
