"""The help: every command and every option says what it is for, and every example is a command that parses."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gptjobs.cli import gptjobs as program
from tests.conftest import VARIABLES, Commands
from tests.unit.test_docs import subcommands


def commands(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group, with the words that lead to it."""
    yield words, command
    if isinstance(command, click.Group):
        for name, each in subcommands(command).items():
            yield from commands(each, *words, name)


ALL = dict(commands(program))
LEAVES = {words: each for words, each in ALL.items() if not isinstance(each, click.Group)}
SUBMITS = [words for words in LEAVES if words[0] == "submit"]


def in_words(words: tuple[str, ...]) -> str:
    return " ".join(words) or "gptjobs"


@pytest.mark.parametrize("words", ALL, ids=in_words)
def test_every_command_and_every_option_has_help(words: tuple[str, ...]) -> None:
    command = ALL[words]
    sentence = (command.help or "").split("\n\n")[0].strip()
    assert re.match(r"[A-Z]", sentence) and sentence.endswith((".", "?")), sentence
    unsaid = [each.name for each in command.params if isinstance(each, click.Option) and not each.help]
    assert unsaid == []


@pytest.mark.parametrize("words", LEAVES, ids=in_words)
def test_every_example_is_of_its_command_and_parses(words: tuple[str, ...]) -> None:
    epilog = LEAVES[words].epilog or ""
    assert epilog.startswith(f"Example: gptjobs {' '.join(words)}"), epilog
    example = epilog.removeprefix("Example: ").partition("   (")[0]
    typed = shlex.split(example)[1 + len(words) :]
    parent = click.Context(program, info_name="gptjobs", **program.context_settings)
    LEAVES[words].make_context(example, typed, parent=parent).close()


@pytest.mark.parametrize("words", ALL, ids=in_words)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_shown_by_its_long_and_its_short_option(words: tuple[str, ...], option: str) -> None:
    shown = CliRunner().invoke(program, [*words, option], prog_name="gptjobs")
    assert shown.exit_code == 0
    assert shown.stdout.startswith(" ".join(("Usage: gptjobs", *words, "[OPTIONS]")))
    assert "-h, --help" in shown.stdout


def test_help_is_on_stdout_with_exit_code_0(gptjobs: Commands) -> None:
    done = gptjobs("--help", GPTJOBS_REDIS_URL="redis://nowhere.invalid:1/0")
    assert (done.returncode, done.stderr) == (0, "")
    listed = set(re.findall(r"^  ([a-z]+) {2,}[A-Z]", done.stdout.partition("Commands:")[2], re.M))
    assert listed == set(subcommands(program))


def test_help_of_resume_shows_the_six_environment_variables_with_their_options(gptjobs: Commands) -> None:
    shown = " ".join(gptjobs.ok("submit", "resume", "--help").split())
    options = ("--from", "--batch-size", "--block-size", "--learning-rate", "--steps", "--data")
    for variable, option in zip(VARIABLES, options, strict=True):
        assert re.search(rf"{option} [A-Z]+ ((?!--[a-z]).)*\[env var: {variable}\]", shown), variable
    assert set(re.findall(r"\[env var: (\w+)\]", shown)) == set(VARIABLES)


def test_help_of_train_shows_the_variables_that_it_reads(gptjobs: Commands) -> None:
    shown = " ".join(gptjobs.ok("submit", "train", "--help").split())
    assert set(re.findall(r"\[env var: (\w+)\]", shown)) == set(VARIABLES) - {"CHECKPOINT_PATH", "RESUME_STEPS"}


@pytest.mark.parametrize("words", SUBMITS, ids=in_words)
def test_no_option_of_submit_has_a_value_that_would_override_the_checkpoints(words: tuple[str, ...]) -> None:
    from gptjobs.config import HYPERPARAMETERS, option

    options = {each.opts[0]: each for each in LEAVES[words].params if isinstance(each, click.Option)}
    given = [options[option(name)].default for name in HYPERPARAMETERS if option(name) in options]
    assert len(given) > 20
    assert set(given) == {None}
