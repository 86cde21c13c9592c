"""`gptjobs demo`: the main job in front of the user's eyes, from nothing to a resumed training job."""

import json
import subprocess
import sys
import time
from pathlib import Path

import click

from gptjobs import settings
from gptjobs.checkpoint import counting
from gptjobs.cli import output
from gptjobs.cli.place import Place
from gptjobs.errors import GptjobsError
from gptjobs.job import Job, JobState
from gptjobs.layout import Layout
from gptjobs.progress import duration

LIMIT_S = 600.0
LOOK_S = 1.0
TEXT = "sources/python_topics.md"
TRAIN = (
    "submit", "train", "--model", "nano", "--data", TEXT, "--name", "first", "--steps", "200",
    "--batch-size", "8", "--block-size", "128", "--learning-rate", "2e-3", "--warmup-steps", "20",
    "--checkpoint-interval", "100", "--eval-interval", "100", "--eval-tokens", "8192",
)  # fmt: skip
RESUME = (
    "submit", "resume", "--from", "first@100", "--name", "second", "--steps", "150", "--batch-size", "32",
    "--block-size", "64", "--learning-rate", "1e-3",
)  # fmt: skip
RESUMED_STEPS = (100, 250)


@click.command(epilog="Example: gptjobs demo --dir /tmp/demo")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("demo"),
              help="Where its storage root is made.  [default: demo]")  # fmt: skip
def demo(folder: Path) -> None:
    """Train a small GPT here and resume it; about a minute.

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
            _follow(here, _run(TRAIN, environment, folder))
            second = _run(RESUME, environment, folder)
            _follow(here, second)
            _report(layout, second)
            output.say(f"\nFlower was at {stack.flower_url}; stopping all")
    output.say(f"done in {duration(time.monotonic() - began)}. What to type next:")
    program = Path(sys.argv[0]).absolute()
    output.say(f"  cd {folder}")
    output.say(f"  {program} checkpoints list        # what can be resumed from")
    output.say(f"  {program} up                      # the server, a worker and Flower again, with these jobs")
    output.say(f"  {program} submit resume --from second@best --learning-rate 5e-4 --steps 500")


def _write_text(path: Path) -> None:
    """Real text that is on every machine: the documentation of the Python language."""
    from pydoc_data.topics import topics

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")


def _run(arguments: tuple[str, ...], environment: dict[str, str], folder: Path) -> str:
    """Run a command as a user would, shown; returns the id it printed."""
    output.say(f"\n{click.style('$ gptjobs ' + ' '.join(arguments), bold=True)}")
    done = subprocess.run(
        [sys.executable, "-m", "gptjobs", *arguments],
        env=environment, cwd=folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise GptjobsError("the demo's command failed", hint="its error is above")
    return done.stdout.strip()


def _follow(place: Place, id: str) -> None:
    """Show the job's progress until it ends: one line that is written anew, or a line a change when piped."""
    deadline, shown = time.monotonic() + LIMIT_S, ""
    while True:
        job = place.store.get(id)
        line = _in_one_line(job)
        if line != shown:
            click.echo(f"\r\033[K{line}" if output.is_terminal() else line, nl=not output.is_terminal(), err=True)
            shown = line
        if job.state.is_terminal:
            break
        if time.monotonic() > deadline:
            raise GptjobsError("the demo's job takes too long", hint="its log is in demo.log")
        time.sleep(LOOK_S)
    if output.is_terminal():
        output.say()
    if job.state is not JobState.FINISHED:
        raise GptjobsError(f"the demo's job {job.state}: {job.reason}")


def _in_one_line(job: Job) -> str:
    shown = job.to_dict()
    if shown["step"] is None:
        return f"{job.state}: {shown['stage'] or 'starting'}"
    done = int(20 * shown["step"] / shown["end_step"])
    return (
        f"{job.state} {'█' * done}{'░' * (20 - done)} step {shown['step']}/{shown['end_step']}, "
        f"loss {output.number(shown['train_loss'], '.3f')}, val {output.number(shown['val_loss'], '.3f')}"
        + (f", {duration(shown['eta_s'])} left" if shown["eta_s"] else "")
    )


def _report(layout: Layout, id: str) -> None:
    metrics = [json.loads(line) for line in layout.metrics_file(id).read_text().splitlines()]
    first, last = (each for each in metrics if each["val_loss"] is not None and each["step"] in RESUMED_STEPS)
    output.say(f"\nvalidation loss (nats a token, context {last['eval_context']})")
    output.say(f"  {first['val_loss']:.4f} at step {first['step']}, as resumed, before any update")
    output.say(f"  {last['val_loss']:.4f} at step {last['step']}")
    output.say("files")
    for each in counting(layout, id):
        output.say(f"  {each.name}")
    for path in (*layout.log_files(id), layout.summary_file(id), layout.loss_picture(id)):
        output.say(f"  {path.relative_to(layout.root)}")
