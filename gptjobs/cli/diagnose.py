"""`gptjobs diagnose`: why a loss stands still or rises, and what to type to find out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import click

from gptjobs import analysis, case, losslog, planning
from gptjobs.case import Case, Odd, Rise, TextFacts
from gptjobs.causes import possible_causes
from gptjobs.causes.cause import PossibleCause
from gptjobs.cli import output
from gptjobs.cli.complete import complete_job
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.replay import show_replay
from gptjobs.cli.source import prepared
from gptjobs.cli.tensors import output_of
from gptjobs.config import VOCABULARY, Plan
from gptjobs.data import inspect as inspecting
from gptjobs.data import tokens
from gptjobs.data.encoding import NAME as R50K
from gptjobs.data.inspect import PASSES, Inspection
from gptjobs.data.locate import shortened
from gptjobs.errors import GptjobsError, NotFound, UsageError
from gptjobs.job import DEVICES, plain
from gptjobs.layout import Layout
from gptjobs.reference import jobs_on_record, pick

_REPORT = "loss_plateau_analysis.md"
"""of a log, here"""
_STARTS = 4096
"""windows of a rise that are looked up"""
_WIDTH = 70
"""characters of text that are shown"""
_SHOWN = 3
"""causes in a terminal; the report has all"""


@click.command(
    epilog="Example: gptjobs diagnose old.log --data book.md --batch-size 8 --block-size 256   (of a job: diagnose @)"
)
@click.argument("what", metavar="JOB|FILE", shell_complete=complete_job)
@click.option(
    "--replay", metavar="FROM:TO", help="Run these steps of the job again, and say where the spike is. Needs torch."
)
@click.option("--device", type=click.Choice(DEVICES), help="Where to.  [default: the best here]")
@click.option("--data", type=click.Path(path_type=Path), help="Of a log: the text that it was trained on.")
@click.option("--encoding", type=click.Choice(list(VOCABULARY)), default=R50K, help=f"Of --data.  [default: {R50K}]")
@click.option("--batch-size", metavar="INT", type=click.IntRange(1), help="Of a log: windows in an update.")
@click.option("--block-size", metavar="INT", type=click.IntRange(1), help="Of a log: tokens in a window.")
@click.option("--all", "shows_all", is_flag=True, help=f"Show all causes.  [default: the first {_SHOWN}]")
@json_option
@pass_place
def diagnose(
    place: Place, what: str, replay: str | None, device: str | None, data: Path | None, encoding: str,
    batch_size: int | None, block_size: int | None, shows_all: bool, as_json: bool,
) -> None:  # fmt: skip
    """Why a loss stands still or rises: possible causes, the likeliest first, with evidence and commands to test.

    Of a job, a metrics.jsonl, or a log with lines such as `Step 2000: train loss 6.51, val loss 6.65`. Writes
    loss_plateau_analysis.md with pictures, to outputs/JOB/ or here. docs/diagnosis.md has the rules.
    """
    file = Path(what)
    if file.is_file():
        if replay:
            raise UsageError("steps of a file cannot be run again", hint="gptjobs diagnose JOB --replay FROM:TO")
        report = Path(_REPORT)
        analysis.check(report)
        found, inspection = _of_file(place, file, data, encoding, batch_size, block_size)
    else:
        job, name = _picked(place.layout, what)
        if replay:
            show_replay(place.layout, job, name, replay, device, as_json)
            return
        found, inspection = _of_job(place.layout, job, name)
        report = place.layout.analysis_file(job)
    causes = possible_causes(found)
    try:
        written = analysis.write(report, found, causes, inspection)
    except OSError as error:
        raise GptjobsError(f"{report} cannot be written: {error.strerror}", hint="from a folder of yours") from error
    if as_json:
        output.as_json(
            {"of": what, "causes": [asdict(each) for each in causes], "files": [str(each) for each in written]}
        )
        return
    _print(found, causes, shows_all)
    output.result(str(report))


def _picked(layout: Layout, reference: str) -> tuple[str, str]:
    """The job and what it is called."""
    known = jobs_on_record(layout)
    try:
        id = pick(reference, known)
    except NotFound as error:
        raise NotFound(f"{error.message}, nor a file", hint=error.hint) from error
    name = next(each.name for each in known if each.id == id)
    # a name means the newest job that has it
    return id, name if name and pick(name, known) == id else id


def _of_file(
    place: Place, file: Path, data: Path | None, encoding: str, batch_size: int | None, block_size: int | None
) -> tuple[Case, Inspection | None]:
    found = losslog.of_file(file, batch_size=batch_size, block_size=block_size)
    if data is None:
        output.say("--data FILE, the text that it was trained on, would tell more")
        return found, None
    text = prepared(place, data, encoding)
    found, inspection = _with_text(place.layout, found, text.source, text.token_file, encoding)
    if found.text is not None:
        found = replace(found, text=replace(found.text, source=str(data), encoding=encoding))
    return found, inspection


def _of_job(layout: Layout, job: str, name: str) -> tuple[Case, Inspection | None]:
    found = case.of_job(layout, job, name)
    assert found.plan is not None
    train, token_file = found.plan.settled.train, planning.token_file_of(layout, found.plan)
    source = layout.path(train.data)
    if not source.is_file() or tokens.read_manifest(token_file) is None:
        output.say(f"the text {train.data} is not there any more, so nothing is said about it")
        return found, None
    if tokens.digest_of(source) != found.plan.data_digest:
        output.say(f"the text {train.data} was changed since, so nothing is said about it")
        return found, None
    with _missing_told():
        found = replace(found, rises=tuple([_with_starts(layout, found.plan, each) for each in found.rises]))
    return _with_text(layout, found, source, token_file, train.encoding)


@contextmanager
def _missing_told() -> Iterator[None]:
    """Where numpy or torch is not installed, less is known, and that is said."""
    try:
        yield
    except NotFound as error:
        output.say(f"{error.message}, so less is said about the text; {error.hint}")


def _with_starts(layout: Layout, plan: Plan, rise: Rise) -> Rise:
    """A rise with the tokens that its windows begin at, but those that its attempt left out."""
    if rise.windows is None or rise.token is None:
        return rise
    first, last = rise.windows[0], min(rise.windows[1], rise.windows[0] + _STARTS)
    words = [str(layout.root), plan.job, "windows", str(first), str(last), str(rise.token)]
    return replace(rise, starts=tuple(json.loads(output_of("worker.locate", *words))))


def _with_text(
    layout: Layout, found: Case, source: Path, token_file: Path, encoding: str
) -> tuple[Case, Inspection | None]:
    with _missing_told(), output.bytes_bar(source.stat().st_size * PASSES, f"inspecting {source.name}") as advance:
        inspection = inspecting.inspected(layout, source, token_file, encoding, advance)
        return replace(found, text=_facts_of(source, inspection)), inspection
    return found, None


def _facts_of(source: Path, inspection: Inspection) -> TextFacts:
    odd = tuple(
        Odd(
            first=each.first, last=each.last, line=each.first_line, score=each.score, why="; ".join(each.reasons),
            text=_beginning(source, each.first_byte, each.last_byte),
        )
        for each in inspection.anomalies
    )  # fmt: skip
    return TextFacts(tokens=inspection.token_count, unigram=inspection.unigram, odd=odd)


def _beginning(source: Path, first: int, last: int) -> str:
    with source.open("rb") as file:
        file.seek(first)
        return plain(shortened(file.read(min(last - first, 4 * _WIDTH)).decode(errors="replace"), _WIDTH))


def _print(found: Case, causes: list[PossibleCause], shows_all: bool) -> None:
    if not causes:
        output.result("Nothing speaks for any of the causes that are known here.")
    for place, each in enumerate(causes if shows_all else causes[:_SHOWN], start=1):
        title = click.style(f"{place}. {each.title}", bold=True)
        output.result(f"{title}  ({analysis.in_a_word(each.strength)})")
        for evidence in each.evidence:
            output.result(f"   {evidence}")
        output.result(f"   against it would speak: {each.against}")
        for test in each.tests:
            output.result(f"   $ {test}")
        output.result()
    if len(causes) > _SHOWN and not shows_all:
        output.say(f"{_SHOWN} of {len(causes)} causes; --all shows more")
