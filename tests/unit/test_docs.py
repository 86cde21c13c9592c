"""The documents say what the program does."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from gptjobs.cli import gptjobs

README = (Path(__file__).parents[2] / "README.md").read_text()


def subcommands(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in subcommands(group).items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def test_the_readme_lists_every_command_with_the_first_sentence_of_its_help() -> None:
    listed = dict(re.findall(r"^\| `(gptjobs [a-z ]+)` \| (.+?) \|$", README, re.M))
    there = {
        name: (command.help or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
        for name, command in commands(gptjobs, "gptjobs")
    }
    assert listed.keys() == there.keys()
    for name, sentence in listed.items():
        assert there[name].split(";")[0].startswith(sentence.rstrip(".").split(";")[0]), name


def test_the_readme_shows_no_option_that_submit_does_not_have() -> None:
    submit = subcommands(gptjobs)["submit"]
    assert isinstance(submit, click.Group)
    for kind, command in subcommands(submit).items():
        known = {option for parameter in command.params for option in parameter.opts}
        for line in re.findall(rf"^gptjobs submit {kind} (.+)$", README, re.M):
            assert set(re.findall(r"--[a-z-]+", line)) <= known
