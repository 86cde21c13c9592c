"""`gptjobs checkpoints export, sample`: what needs the weights themselves, in a process that loads torch."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import click

from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.job import DEVICES
from gptjobs.layout import Layout
from gptjobs.reference import find_checkpoint

FORMATS = ("hugging-face", "nanogpt")
_reference = click.argument("reference", metavar="REF", shell_complete=complete_checkpoint)


@click.command(epilog="Example: gptjobs checkpoints export @best ~/my-gpt2")
@_reference
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="Whose layout."
)
@json_option
@pass_place
def export(place: Place, reference: str, out: Path, form: str, as_json: bool) -> None:
    """Write a checkpoint for other programs: a Hugging Face folder with its tokenizer, or nanoGPT's ckpt.pt.

    OUT is the folder, or the file of nanoGPT's; it must not be there. nanoGPT's has Adam's moments, so that training
    goes on there.
    """
    found = committed(place, reference)
    if out.exists():
        raise Refused(f"{out} is there already", hint="another name, or move it away")
    _run("worker.export", str(place.layout.root), found.name, form, str(out.absolute()))
    if as_json:
        output.as_json({"checkpoint": found.name, "format": form, "out": str(out)})
        return
    output.result(str(out))
    if form == "nanogpt" and found.manifest.settled.model.activation == "gelu_tanh":
        output.say("note: nanoGPT computes the exact GELU, this model was trained with its tanh approximation")


@click.command(epilog='Example: gptjobs checkpoints sample @best --prompt "To be" --tokens 100')
@_reference
@click.option("--prompt", default="\n", help="What it goes on from.  [default: a line's end]")
@click.option("--tokens", type=click.IntRange(1), default=200, show_default=True, help="How many.")
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0: the likeliest.")
@click.option("--top-k", type=click.IntRange(0), default=0, help="Among the likeliest so many.  [default: all]")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
    help="Among the fewest that have this probability together.",
)  # fmt: skip
@click.option("--seed", type=int, default=1337, show_default=True, help="Of the draws.")
@click.option("--device", type=click.Choice(DEVICES), help="Where.  [default: the best here]")
@pass_place
def sample(
    place: Place, reference: str, prompt: str, tokens: int, temperature: float, top_k: int, top_p: float, seed: int,
    device: str | None,
) -> None:  # fmt: skip
    """Let a checkpoint write text, as it comes."""
    if not prompt:
        raise click.BadParameter("a model goes on from something: at least a character", param_hint="--prompt")
    found = committed(place, reference)
    words = [f"--prompt={prompt}", f"--tokens={tokens}", f"--temperature={temperature}", f"--top-k={top_k}"]
    words += [f"--top-p={top_p}", f"--seed={seed}", *([f"--device={device}"] if device else [])]
    _run("worker.sample", str(place.layout.root), found.name, *words)


def committed(place: Place, reference: str) -> Checkpoint:
    """Raises Refused for one of another program, that is no part of the root yet."""
    found = find_checkpoint(place.layout, reference, Path.cwd())
    if found.lies_at is not None:
        raise Refused(f"{found.name} has no manifest yet", hint=f"gptjobs checkpoints import {found.lies_at}")
    return found


def _run(module: str, *words: str) -> None:
    """The child talks for itself; its exit code is the command's."""
    code = subprocess.run(child_of(module, *words), check=False).returncode
    if code:
        raise click.exceptions.Exit(code)


def evaluated_at(layout: Layout, found: Checkpoint, context: int, tokens: int) -> list[float]:
    """The losses of a checkpoint on the held-out windows of `context` tokens among the first `tokens`; raises Refused
    with what stands against it."""
    command = child_of("worker.evaluate", str(layout.root), found.name, str(context), str(tokens))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("error: ")
        raise Refused(f"{found.name} cannot be evaluated at context {context}: {said}")
    losses: list[float] = json.loads(done.stdout)
    return losses


def output_of(module: str, *words: str) -> str:
    """What such a child prints; raises GptjobsError where it fails, with what it said above."""
    done = subprocess.run(child_of(module, *words), check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise GptjobsError(f"{module} ended with exit code {done.returncode}", hint="what it said stands above")
    return done.stdout


def child_of(module: str, *words: str) -> list[str]:
    if importlib.util.find_spec("torch") is None:
        raise NotFound("this needs torch, which is not installed here", hint="pip install 'gptjobs[worker]'")
    return [sys.executable, "-m", module, *words]
