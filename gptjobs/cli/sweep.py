"""`gptjobs sweep`: what became of sweeps, and what is asked of them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import click

from gptjobs import findings, trials
from gptjobs.cli import output
from gptjobs.cli.complete import sweep_argument
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.contract import value_in_words
from gptjobs.errors import GptjobsError, NotFound
from gptjobs.reference import find_sweep
from gptjobs.sweep import Sweep
from gptjobs.verdict import CONFIDENCE


@click.group("sweep")
def group() -> None:
    """Searches over hyperparameters: gptjobs submit sweep puts one into the queue."""


@group.command("list", epilog="Example: gptjobs sweep list")
@json_option
@pass_place
def list_sweeps(place: Place, as_json: bool) -> None:
    """The sweeps, oldest first."""
    from gptjobs import sweeping

    rows = [
        sweeping.overview(place.layout, each, trials.read(place.layout, each.id))
        for each in trials.sweeps(place.layout)
    ]
    if as_json:
        output.as_json({"sweeps": rows})
        return
    if not rows:
        output.say("no sweeps yet; gptjobs submit sweep --help")
        return
    output.table(
        ("ID", "NAME", "STATE", "TRIALS", "BEST", "SEARCHED"),
        [
            (
                each["id"], each["name"] or "-", each["state"], f"{each['ended']}/{each['trials']}",
                output.number(each["best"], ".4f"), " ".join(each["searched"]),
            )
            for each in rows
        ],
        right=(3, 4),
    )  # fmt: skip


@group.command(epilog="Example: gptjobs sweep show @")
@sweep_argument
@json_option
@pass_place
def show(place: Place, sweep: str, as_json: bool) -> None:
    """A sweep's trials, best first, and what can be said of the differences. Trials are ranked by their validation
    losses on the same windows, at the same context, after as many tokens; others are not."""
    from gptjobs import sweeping

    found = find_sweep(place.layout, sweep)
    tried = trials.read(place.layout, found.id)
    ranking = trials.rank(tried)
    rows, verdict = findings.rows(ranking), findings.verdict_of(place.layout, found, ranking)
    overview = sweeping.overview(place.layout, found, tried)
    if as_json:
        output.as_json({**overview, "rows": rows, "verdict": [each.to_dict() for each in verdict]})
        return
    output.say(f"sweep {found.called}: {overview['state']}, {overview['ended']} of {found.trials} trials have ended")
    _table(rows)
    if verdict:
        output.result()
        for each in verdict:
            output.result(str(each))
        output.say(findings.basis(verdict, CONFIDENCE))
    if ranking.ranked:
        output.say(f"Next: gptjobs submit resume --from {found.called}@best --steps 2000")


@group.command(epilog="Example: gptjobs sweep top @ -n 3")
@sweep_argument
@click.option("-n", "--limit", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@json_option
@pass_place
def top(place: Place, sweep: str, limit: int, as_json: bool) -> None:
    """The best trials of a sweep."""
    found = find_sweep(place.layout, sweep)
    ranked = trials.rank(trials.read(place.layout, found.id)).ranked[:limit]
    rows = findings.rows(trials.Ranking(ranked, ()))
    if as_json:
        output.as_json({"id": found.id, "rows": rows})
    elif rows:
        _table(rows)
    else:
        raise NotFound(
            f"no trial of sweep {found.called} has made all its steps yet", hint=f"gptjobs sweep show {found.called}"
        )


def _table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        output.say("no trial was begun yet: is a worker there? gptjobs worker list")
        return
    names = findings.hyperparameters(rows)
    output.table(
        ("RANK", "TRIAL", *(each.upper() for each in names), "STATE", "TOKENS", "VAL LOSS", "CONTEXT", "JOB", ""),
        [
            (
                output.number(each["rank"], "d"), str(each["trial"]), *_params(each, names), each["state"],
                output.number(each["tokens"], ",d"), output.number(each["val_loss"], ".4f"),
                output.number(each["eval_context"], "d"), each["job"] or "-", _not_ranked(each),
            )
            for each in rows
        ],
        right=(0, 1, *range(2, 2 + len(names)), 3 + len(names), 4 + len(names), 5 + len(names)),
    )  # fmt: skip


def _params(row: dict[str, Any], names: list[str]) -> list[str]:
    return [value_in_words(row["params"][name]) if name in row["params"] else "·" for name in names]


def _not_ranked(row: dict[str, Any]) -> str:
    return "" if row["why"] in (None, row["state"]) else f"not ranked: {row['why']}"


@group.command(epilog="Example: gptjobs sweep stop @")
@sweep_argument
@json_option
@pass_place
def stop(place: Place, sweep: str, as_json: bool) -> None:
    """No more trials; those in work pause, with a checkpoint. gptjobs sweep start lets it go on."""
    from gptjobs import sweeping

    place.check_root()
    found = find_sweep(place.layout, sweep)
    _tell(found, sweeping.stop(place.store, place.layout, found), trials.STOPPED, "paused", as_json)


@group.command(epilog="Example: gptjobs sweep start @")
@sweep_argument
@json_option
@pass_place
def start(place: Place, sweep: str, as_json: bool) -> None:
    """Let a stopped sweep go on, from its trials' checkpoints."""
    from gptjobs import sweeping

    place.check_root()
    found = find_sweep(place.layout, sweep)
    _tell(found, sweeping.start(place.store, place.layout, place.app, found), trials.GOING_ON, "go on", as_json)


def _tell(sweep: Sweep, jobs: list[str], state: str, words: str, as_json: bool) -> None:
    if as_json:
        output.as_json({"id": sweep.id, "state": state, "jobs": jobs})
        return
    output.result(f"{sweep.id}  {state}")
    if jobs:
        output.say(f"{len(jobs)} trials {words}: {' '.join(jobs)}")


@group.command(epilog="Example: gptjobs sweep promote @ 7")
@sweep_argument
@click.argument("trial", type=click.IntRange(0))
@json_option
@pass_place
def promote(place: Place, sweep: str, trial: int, as_json: bool) -> None:
    """Let a trial that the pruner stopped go on, from its checkpoint. It is not stopped again."""
    from gptjobs import sweeping

    place.check_root()
    found = find_sweep(place.layout, sweep)
    job = sweeping.promote(place.store, place.layout, place.app, found, trial)
    if as_json:
        output.as_json({"id": found.id, "trial": trial, "job": job})
        return
    output.result(job)
    output.say(f"trial {trial} goes on. Next: gptjobs watch {job}")


@group.command(epilog="Example: gptjobs sweep export @ --output trials.csv")
@sweep_argument
@click.option(
    "--output", "file", type=click.Path(dir_okay=False, path_type=Path), help="Where to.  [default: standard output]"
)
@click.option("--format", "form", type=click.Choice(("csv", "json")), help="[default: by the file's ending, else csv]")
@pass_place
def export(place: Place, sweep: str, file: Path | None, form: str | None) -> None:
    """A sweep's trials as CSV or JSON, with their evaluations in JSON."""
    found = find_sweep(place.layout, sweep)
    tried = trials.read(place.layout, found.id)
    rows = findings.rows(trials.rank(tried))
    form = form or ("json" if file is not None and file.suffix == ".json" else "csv")
    text = _csv(rows) if form == "csv" else _json(found, rows, tried)
    if file is None:
        output.result(text.rstrip("\n"))
        return
    try:
        file.write_text(text)
    except OSError as error:
        raise GptjobsError(f"{file} cannot be written: {error.strerror}", hint="--output elsewhere") from error
    output.say(f"{len(rows)} trials in {file}")


def _csv(rows: list[dict[str, Any]]) -> str:
    names = findings.hyperparameters(rows)
    columns = ("rank", "trial", "state", "step", "tokens", "val_loss", "eval_context", "job")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*columns, *names))
    for each in rows:
        writer.writerow((*(each[name] for name in columns), *(each["params"].get(name) for name in names)))
    return text.getvalue()


def _json(sweep: Sweep, rows: list[dict[str, Any]], tried: list[trials.Tried]) -> str:
    points = {
        each.trial.number: [dict(step=one.step, tokens=one.tokens, val_loss=one.val_loss) for one in each.evaluations]
        for each in tried
    }
    content = {**sweep.to_dict(), "rows": [{**each, "evaluations": points[each["trial"]]} for each in rows]}
    return json.dumps({"schema": output.SCHEMA, **content}, indent=2) + "\n"
