"""The command line: `gptjobs`. Commands import what is heavy when they run, so that help is quick."""

import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from gptjobs import settings
from gptjobs.cli import checkpoints, data, demo, jobs, submit, up, worker
from gptjobs.cli.place import Place
from gptjobs.errors import GptjobsError

CTRL_C = 130


class Commands(click.Group):
    """A group that says what a mistyped command may have meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close = get_close_matches(args[0], self.list_commands(ctx), n=1) if args else []
        if close and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"there is no command '{args[0]}'. Did you mean {close[0]}?")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"The storage root: where checkpoints/ and shared_data/ are.  [env: {settings.ROOT_VARIABLE}; "
    "default: the working directory]",
)
@click.pass_context
def gptjobs(context: click.Context, root: Path | None) -> None:
    """A job queue for GPT-2 training runs, whose workers know what a training run is.

    Start here: `gptjobs up` in a folder of its own, then `gptjobs submit train --help` in another terminal.
    """
    context.obj = Place(settings.load(root))


for each in (
    submit.group,
    *jobs.commands,
    data.group,
    checkpoints.group,
    worker.group,
    up.up,
    demo.demo,
    up.version,
):
    gptjobs.add_command(each)


def main(arguments: list[str] | None = None) -> Any:
    """The process's edge: errors become words and exit codes."""
    try:
        code = gptjobs.main(args=arguments, prog_name="gptjobs", standalone_mode=False)
    except GptjobsError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
        if error.hint:
            click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = CTRL_C
    except BrokenPipeError:
        # the reader, `head` say, has gone; nothing more can be said, also not at the interpreter's exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
