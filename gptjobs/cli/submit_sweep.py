"""`gptjobs submit sweep`: a search over hyperparameters."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gptjobs import adoption, notify
from gptjobs import sweep as sweeps
from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint
from gptjobs.cli.options import CHECKPOINT_VARIABLE, addresses, hyperparameters, notify_option, read_toml, said
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.prepare import Ready, bring, check_name, check_without_root, find_workers, prepare, say_who_is_told
from gptjobs.config import DEFAULT_SEED, Overrides, Settled, check
from gptjobs.errors import GptjobsError, UsageError
from gptjobs.job import ANY, DEFAULT_PRIORITY, DEVICES, HIGHEST_PRIORITY
from gptjobs.layout import new_job_id
from gptjobs.sweep import DIAGNOSE, GRID, MANY_POINTS, NONE, PRUNERS, SAMPLERS, TPE, Dimension, Sweep, Trial

TABLES = ("grid", "range", "sweep")
"""of a TOML file, beside hyperparameters: what is searched, and the options of this command by their names"""
TRIALS = 20
"""of a sweep that is no grid, unless it is told how many"""
_WHOLE_GRID = 1 << 60
_SHOWN = 12
"""trials of a grid that are listed before they are queued"""
_OF_ALL = (
    "steps", "seed", "eval_interval", "eval_tokens", "eval_context", "checkpoint_interval", "data", "encoding",
    "target_val_loss", "patience", "gpus", "shard",
)  # fmt: skip
"""hyperparameters that are no change to diagnose: how long, on what, and how it is measured"""


@click.command(
    epilog="Example: gptjobs submit sweep --from JOB@best --steps 500 --grid learning_rate=1e-5,5e-5,1e-4 "
    "--grid block_size=64,128"
)
@click.option(
    "--from", "parent", envvar=CHECKPOINT_VARIABLE, show_envvar=True, metavar="REF", shell_complete=complete_checkpoint,
    help="The checkpoint that every trial starts from: a path, JOB@best, JOB@last or JOB@STEP. Left out: from scratch.",
)  # fmt: skip
@click.option("--grid", "grids", multiple=True, metavar="NAME=A,B", help="Values to try; may be given several times.")
@click.option(
    "--range", "ranges", multiple=True, metavar="NAME=LOW:HIGH[:log]", help="Where to search; several times too."
)
@click.option(
    "--preset", type=click.Choice([DIAGNOSE]), help="Each of the changes given alone, all together, and none."
)
@click.option("--seeds", metavar="A,B", help="Every trial with each of these seeds.")
@click.option("--trials", type=click.IntRange(1), help=f"How many.  [default: the whole grid; else {TRIALS}]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help=f"What chooses.  [default: {GRID}; with a range {TPE}]")
@click.option("--pruner", type=click.Choice(PRUNERS), help=f"What stops trials early.  [default: {NONE}]")
@click.option("--parallel", type=click.IntRange(1), help="Trials at once.  [default: as many as there are slots]")
@click.option(
    "--budget-tokens", type=click.IntRange(1), help="Tokens that each trial trains on.  [default: those of --steps]"
)
@hyperparameters(of="sweep")
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file: hyperparameters, and tables [grid], [range], [sweep].",
)  # fmt: skip
@click.option("--name", help="What to call the sweep, besides its id.")
@click.option("--device", type=click.Choice([ANY, *DEVICES]), default=ANY, help="Where it may run.  [default: any]")
@click.option(
    "--priority", type=click.IntRange(0, HIGHEST_PRIORITY), default=DEFAULT_PRIORITY,
    help=f"{HIGHEST_PRIORITY} is soonest.  [default: {DEFAULT_PRIORITY}]",
)  # fmt: skip
@notify_option
@click.option("--require-worker", is_flag=True, help="Refuse (exit 6) if no worker there could take it.")
@click.option("--dry-run", is_flag=True, help="Show what would happen; queue nothing.")
@click.option("--yes", is_flag=True, help=f"Do not ask about a grid of more than {MANY_POINTS:,} trials.")
@click.option("-q", "--quiet", is_flag=True, help="Print the sweep's id alone.")
@json_option
@pass_place
@click.pass_context
def sweep(context: click.Context, place: Place, /, **values: Any) -> None:
    """Try hyperparameters from one checkpoint, or from scratch, and say which helped.

    Each trial is a job: the same checkpoint, the same order of data, as many tokens as the others, and evaluations at
    a context that all have. --steps is of a trial that changes nothing; others have more or fewer for the same tokens.
    """
    urls = addresses(context, place.layout, values["config"])
    made = replace(_request(context, place), notify=notify.masked_all(urls))
    control = made.part(Trial(number=0, params={}), 0, kind=made.kind, parent=made.parent, overrides=made.overrides)
    talks = not (values["quiet"] or values["as_json"])
    ready = None
    if place.layout.is_there:
        ready = prepare(place, control)
        made = _in_root(made, ready)
        bring(place.layout, ready, talks=talks, is_dry=values["dry_run"])
    else:
        check_without_root(place.layout, control, talks=talks)
    made = replace(made, trials=_trials(made))
    _ask_about_many(made, yes=values["yes"])
    if talks:
        output.say(_what_will_happen(made, ready))
        say_who_is_told(made.notify)
    find_workers(place, control, values["require_worker"], values["dry_run"], talks)
    if not values["dry_run"]:
        _queue(place, made, ready, urls)
    _print_result(made, values)


def _request(context: click.Context, place: Place) -> Sweep:
    options = context.params
    check_name(options["name"])
    if len(options["name"] or "") > sweeps.LONGEST_NAME:
        raise UsageError(f"--name is longer than {sweeps.LONGEST_NAME} characters", hint="trials add their numbers")
    file = _tables(options["config"]) if options["config"] else {}
    options = {**_of_file(file.get("sweep", {}), context), **_given(context)}
    overrides = said(context, place.layout, context.params["config"], TABLES)
    check(overrides)
    dimensions = _dimensions(file, options)
    changes: Overrides = {}
    if options.get("preset") == DIAGNOSE:
        changes = {name: given for name, given in overrides.items() if name not in _OF_ALL}
        overrides = {name: given for name, given in overrides.items() if name in _OF_ALL}
    if options.get("preset") == DIAGNOSE and not changes:
        raise UsageError(
            f"--preset {DIAGNOSE} was given no change to look into", hint="the changed values: --learning-rate 1e-5 …"
        )
    has_ranges = any(not each.choices for each in dimensions)
    sampler = options.get("sampler") or (TPE if has_ranges and not changes else GRID)
    is_grid = sampler == GRID or bool(changes)
    made = Sweep(
        id=new_job_id(),
        name=context.params["name"],
        parent=options.get("parent"),
        overrides=overrides,
        dimensions=dimensions,
        changes=changes,
        sampler=sampler,
        pruner=options.get("pruner") or NONE,
        trials=options.get("trials") or (_WHOLE_GRID if is_grid else TRIALS),
        parallel=options.get("parallel"),
        budget_tokens=options.get("budget_tokens"),
        seed=overrides["seed"].value if "seed" in overrides else DEFAULT_SEED,
        device=context.params["device"],
        priority=context.params["priority"],
        submitted_at=time.time(),
    )
    sweeps.check(made)
    return made


def _tables(path: Path) -> dict[str, Any]:
    """Raises UsageError where one of this command's tables is none, or a grid's values are no list."""
    file = read_toml(path)
    for name in TABLES:
        if not isinstance(file.get(name, {}), dict):
            raise UsageError(f"{path}: '{name}' is no table", hint=f"[{name}] and lines below it")
    for name, values in file.get("grid", {}).items():
        if not isinstance(values, list):
            raise UsageError(f"{path}: [grid] {name} is no list", hint=f"{name} = [1, 2]")
    return file


def _given(context: click.Context) -> dict[str, Any]:
    """The options of this command that were given."""
    return {name: value for name, value in context.params.items() if value not in (None, ())}


def _of_file(table: Mapping[str, Any], context: click.Context) -> dict[str, Any]:
    """What [sweep] of a file says, by the options' names; raises UsageError for what no option says."""
    options = {each.name: each for each in context.command.params}
    names = {"from": "parent", "preset": "preset", "seeds": "seeds", "trials": "trials", "sampler": "sampler",
             "pruner": "pruner", "parallel": "parallel", "budget_tokens": "budget_tokens"}  # fmt: skip
    found = {}
    for name, value in table.items():
        if name not in names:
            raise UsageError(f"[sweep] has no '{name}'", hint=", ".join(names))
        words = ",".join(map(str, value)) if isinstance(value, list) else value
        found[names[name]] = options[names[name]].type_cast_value(context, words)
    return found


def _dimensions(file: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Those of the file, then those of the options; a hyperparameter that options search is searched as they say."""
    grids = [f"{name}={','.join(map(_word, values))}" for name, values in file.get("grid", {}).items()]
    ranges = [f"{name}={words}" for name, words in file.get("range", {}).items()]
    of_file = [*map(sweeps.grid, grids), *map(sweeps.span, ranges)]
    given = [*map(sweeps.grid, options.get("grids", ())), *map(sweeps.span, options.get("ranges", ()))]
    if options.get("seeds"):
        given.append(sweeps.grid(f"seed={options['seeds']}"))
    names = {each.name for each in given}
    return (*(each for each in of_file if each.name not in names), *given)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_root(made: Sweep, ready: Ready) -> Sweep:
    """With names of the root, and without changes that change nothing: the checkpoint has these values."""
    changes = made.changes
    if made.changes and ready.parent is not None:
        before = ready.plan.settled
        values = {**vars(before.model), **vars(before.train)}
        changes = {name: given for name, given in changes.items() if values[name] != given.value}
        if not changes:
            raise UsageError("the checkpoint was trained with these values already", hint="values that it has not")
    return replace(
        made,
        parent=ready.parent.name if ready.parent else None,
        overrides=ready.spec.overrides,
        changes=changes,
        data_digest=ready.plan.data_digest,
    )


def _trials(made: Sweep) -> int:
    if not made.has_fixed_points:
        return made.trials
    return min(made.trials, sweeps.points(made.dimensions, made.changes))


def _ask_about_many(made: Sweep, *, yes: bool) -> None:
    if made.trials <= MANY_POINTS or yes:
        return
    if not output.is_terminal():
        raise UsageError(f"the grid has {made.trials:,} trials", hint="--yes, if all are meant; --trials for the first")
    click.confirm(f"The grid has {made.trials:,} trials. Queue them all?", abort=True, err=True)


def _what_will_happen(made: Sweep, ready: Ready | None) -> str:
    lines = [f"sweep {made.called}: {made.trials} trials, {f'from {made.parent}' if made.parent else 'from scratch'}"]
    if made.changes:
        lines.append(f"  tried alone and together: {sweeps.params_in_words(_values(made.changes))}; and none of it")
    lines += [f"  {'grid' if each.choices else 'range'} {each}" for each in made.dimensions]
    lines.append(f"  sampler {made.sampler}, pruner {made.pruner}")
    if ready is None:
        return "\n".join(lines)
    base, parent = ready.plan.settled, ready.parent
    context = made.common_context
    context = base.train.evaluated_at if context is None else min(context, base.train.block_size)
    lines.append(f"  {made.tokens(base):,} tokens a trial, evaluated at context {context}")
    start = (parent.manifest.settled, parent.manifest.step) if parent else (None, 0)
    for trial in _first_trials(made):
        lines.append(f"  {trial.number}: {trial}  ({_fate(made, trial, *start)})")
    rest = made.trials - _SHOWN
    return "\n".join([*lines, *([f"  … and {rest} more"] if made.has_fixed_points and rest > 0 else [])])


def _first_trials(made: Sweep) -> Sequence[Trial]:
    if not made.has_fixed_points:
        return []
    return [Trial(number=each, params=made.point(each)) for each in range(min(made.trials, _SHOWN))]


def _fate(made: Sweep, trial: Trial, parent: Settled | None, parent_step: int) -> str:
    """How many steps a trial has, or why it cannot be."""
    try:
        train = made.settled(parent, parent_step, trial.params).train
    except GptjobsError as error:
        return f"will fail: {error.message}"
    steps = made.job(trial, parent, parent_step).overrides["steps"].value
    return f"{steps:,} steps of {train.batch_size} × {train.block_size} tokens"


def _values(overrides: Overrides) -> dict[str, Any]:
    return {name: given.value for name, given in overrides.items()}


def _queue(place: Place, made: Sweep, ready: Ready | None, urls: Sequence[str]) -> None:
    from gptjobs import sweeping

    if ready is not None and ready.parent is not None:
        adoption.commit(place.layout, ready.parent)
    sweeping.submit(place.store, place.layout, made, urls)


def _print_result(made: Sweep, options: Mapping[str, Any]) -> None:
    if options["as_json"]:
        output.as_json({"id": None if options["dry_run"] else made.id, "sweep": made.to_dict()})
        return
    if options["dry_run"]:
        output.say("dry run: nothing was queued")
        return
    output.result(made.id)
    if not options["quiet"]:
        output.say("queued. Next:")
        for command in ("sweep show", "wait", "sweep stop"):
            output.say(f"  gptjobs {command} {made.called}")
