"""The documents say what the program does."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

from gptjobs.cli import gptjobs

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
HOSTS = (REPOSITORY / "docs" / "hosts.md").read_text()


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


def options_of_redis(compose: str) -> dict[str, str]:
    """Of the server's command line."""
    (command,) = re.findall(r"^      redis-server (.+?)^    \w", compose, re.M | re.S)
    return dict(re.findall(r"--([a-z-]+) (\S+)", command))


def test_redis_in_a_container_is_opened_to_hosts_as_the_page_opens_another_one() -> None:
    base, opened = (
        options_of_redis((REPOSITORY / f"{each}.yml").read_text()) for each in ("docker-compose", "compose.lan")
    )
    (written,) = re.findall(r"^```ini .+?\n(.+?)^```", HOSTS, re.M | re.S)
    page = dict(line.split(" ", 1) for line in written.splitlines())
    assert base.items() <= opened.items()
    added = {name: value.rpartition("/")[2] for name, value in opened.items() if name not in base}
    assert added.items() <= {name: value.rpartition("/")[2] for name, value in page.items()}.items()
    assert {name for name in page if name.startswith("tls")} == {name for name in added if name.startswith("tls")}
    assert {name: page[name] for name in base if name != "aclfile"} == {n: v for n, v in base.items() if n != "aclfile"}


def test_the_containers_passwords_make_the_urls_of_other_hosts(tmp_path: Path) -> None:
    for user in ("client", "worker", "flower"):
        (tmp_path / "secrets" / user).mkdir(parents=True)
        (tmp_path / "secrets" / user / "redis-url").write_text(f"redis://{user}:its-password@redis:6379/0")
    (block,) = re.findall(r"^```sh container\n(.+?)^```", HOSTS, re.M | re.S)
    subprocess.run(["sh", "-euc", block], cwd=tmp_path, check=True)
    (of_worker,) = re.findall(r'echo "(rediss://\S+)"', HOSTS)
    expected = of_worker.replace("$user", "worker").replace("$password", "its-password")
    assert (tmp_path / "redis-url-worker").read_text() == expected
