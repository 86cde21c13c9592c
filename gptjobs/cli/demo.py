"""`gptjobs demo`: the main job in front of the user's eyes, from nothing to a resumed training job."""

import subprocess
import sys
import time
from pathlib import Path

import click

from gptjobs import settings
from gptjobs.cli import output
from gptjobs.cli.place import Place
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from gptjobs.progress import duration

LIMIT_S = 600.0
LOOK_S = 1.0
TEXT = "sources/python_topics.md"
STORY = (
    (
        "A small GPT, trained from scratch at a timid learning rate",
        "submit train --model nano --data sources/python_topics.md --name timid --steps 200 --batch-size 8 "
        "--block-size 128 --learning-rate 2e-4 --warmup-steps 20 --checkpoint-interval 100 --eval-interval 50 "
        "--eval-tokens 8192 --follow",
    ),
    ("It crawls. What there is to go back to", "checkpoints list timid"),
    (
        "Back to step 100, on other hyperparameters: the contract says what continues, changes and resets",
        "submit resume --from timid@100 --name bold --learning-rate 2e-3 --batch-size 16 --steps 200 --follow",
    ),
    ("Did it help? Both, over the tokens they trained on", "plot timid bold --text"),
)
"""what each command is for, and the command"""


@click.command(epilog="Example: gptjobs demo --dir /tmp/demo")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("demo"),
              help="Where its storage root is made.  [default: demo]")  # fmt: skip
def demo(folder: Path) -> None:
    """Train a small GPT here, resume it on other hyperparameters and compare; about a minute.

    Starts a server, a worker and Flower of its own, and stops them at the end.
    """
    from gptjobs.local import Stack

    began = time.monotonic()
    folder = folder.absolute()
    layout = Layout(folder)
    _write_text(folder / TEXT)
    with (folder / "demo.log").open("a") as log:
        stack = Stack(
            settings=settings.Settings(root=folder, redis_url="", redis_url_given=False),
            say=lambda name, line: print(f"{name} | {line}", file=log, flush=True),
        )
        output.say(f"starting a server, a worker and Flower; their log is {folder / 'demo.log'}")
        with stack:
            output.say(f"Flower shows progress too: {stack.flower_url}")
            environment = settings.child_environment(stack.settings)
            here = Place(stack.settings)
            while not here.store.workers():
                time.sleep(LOOK_S)
            for why, command in STORY:
                _run(why, command, environment, folder)
            _report(layout, here.store.find("bold").spec.id)
            output.say(f"\nFlower was at {stack.flower_url}; stopping all")
    output.say(f"done in {duration(time.monotonic() - began)}. What to type next:")
    program = Path(sys.argv[0]).absolute()
    output.say(f"  cd {folder}")
    output.say(f"  {program} checkpoints list        # what can be resumed from")
    output.say(f"  {program} up                      # the server, a worker and Flower again, with these jobs")
    output.say(f"  {program} submit resume --from bold@best --learning-rate 5e-4 --steps 500")


def _write_text(path: Path) -> None:
    """Real text that is on every machine: the documentation of the Python language."""
    from pydoc_data.topics import topics

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")


def _run(why: str, command: str, environment: dict[str, str], folder: Path) -> None:
    """Run a command as a user would, shown, until it has ended."""
    output.say(f"\n{click.style(f'# {why}', dim=True)}\n{click.style(f'$ gptjobs {command}', bold=True)}")
    arguments = [sys.executable, "-m", "gptjobs", *command.split()]
    try:
        done = subprocess.run(arguments, env=environment, cwd=folder, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise GptjobsError("the demo's job takes too long", hint="its log is in demo.log") from None
    if done.returncode:
        raise GptjobsError("the demo's command failed", hint="its error is above")


def _report(layout: Layout, id: str) -> None:
    """The summary's facts, and where the rest is."""
    summary = layout.summary_file(id)
    output.say(f"\n{click.style(f'# Written down in {summary.relative_to(layout.root)}', dim=True)}")
    output.say("\n".join(line for line in summary.read_text().splitlines() if line.startswith("- ")))
    for path in (layout.loss_picture(id), *layout.log_files(id)):
        output.say(f"- {path.relative_to(layout.root)}")
