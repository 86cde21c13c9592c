"""`gptjobs completion`: the script that teaches a shell to complete."""

import click
from click.shell_completion import get_completion_class

from gptjobs.cli import output

PROGRAM = "gptjobs"
VARIABLE = "_GPTJOBS_COMPLETE"
_BASH_BREAKS_NO_WORD_AT_AT = "COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}  # JOB@best is one word\n"


@click.command(epilog="Example: gptjobs completion bash")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, jobs and checkpoints in bash, zsh or fish.

    \b
    bash:  gptjobs completion bash > ~/.local/share/bash-completion/completions/gptjobs
    zsh:   gptjobs completion zsh > a folder of your fpath/_gptjobs, before compinit
    fish:  gptjobs completion fish > ~/.config/fish/completions/gptjobs.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    script = made(context.find_root().command, {}, PROGRAM, VARIABLE).source()
    output.result(script + (_BASH_BREAKS_NO_WORD_AT_AT if shell == "bash" else ""))
