"""`gptjobs submit`: train and resume jobs."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gptjobs import __version__, adoption, checkpoint, contract, durable, foreign, planning
from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint
from gptjobs.cli.options import CHECKPOINT_VARIABLE, hyperparameters, said
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.watch import watch_job
from gptjobs.config import Given, Plan, check, settle
from gptjobs.data import tokens
from gptjobs.errors import NotFound, NoWorker, RedisUnreachable, Refused, UsageError
from gptjobs.job import ANY, DEFAULT_PRIORITY, DEVICES, HIGHEST_PRIORITY, SCHEMA, JobSpec
from gptjobs.layout import Layout, is_name, job_id_of_key, new_job_id
from gptjobs.reference import find_checkpoint, jobs_on_record


@click.group("submit")
def group() -> None:
    """Put a job into the queue."""


def _request_options(command: Any) -> Any:
    """The options of every submit that are no hyperparameters."""
    any_or_device = click.Choice([ANY, *DEVICES])
    priority = click.IntRange(0, HIGHEST_PRIORITY)
    options = (
        click.option(
            "--config", type=click.Path(dir_okay=False, path_type=Path), help="Hyperparameters from a TOML file."
        ),
        click.option("--name", help="What to call the job, besides its id."),
        click.option("--device", type=any_or_device, default=ANY, help="Where it may run.  [default: any]"),
        click.option(
            "--priority",
            type=priority,
            default=DEFAULT_PRIORITY,
            help=f"{HIGHEST_PRIORITY} is soonest.  [default: {DEFAULT_PRIORITY}]",
        ),
        click.option("--idempotency-key", metavar="KEY", help="Submitted again with the same key, it is the same job."),
        click.option("--require-worker", is_flag=True, help="Refuse (exit 6) if no worker there could take it."),
        click.option("--dry-run", is_flag=True, help="Show what would happen; queue nothing."),
        click.option("--follow", is_flag=True, help="Then watch the job until it ends, and exit with its code."),
        click.option("-q", "--quiet", is_flag=True, help="Print the job's id alone."),
        json_option,
    )
    for each in reversed(options):
        command = each(command)
    return command


@group.command(epilog="Example: gptjobs submit train --model nano --data book.md --steps 1500 --batch-size 8")
@hyperparameters(resume=False)
@_request_options
@pass_place
@click.pass_context
def train(context: click.Context, place: Place, /, **values: Any) -> None:
    """Train a GPT from scratch.

    A file outside the storage root is copied into shared_data/. Values come from gptjobs.toml in the root,
    --config, the environment (BATCH_SIZE, BLOCK_SIZE, LEARNING_RATE, TRAINING_DATA_SOURCE), then options.
    """
    _submit(context, place, _request(context, place, kind="train"))


@group.command(
    epilog="Example: gptjobs submit resume --from JOB@1500 --batch-size 32 --block-size 128 "
    "--learning-rate 1e-5 --steps 2000"
)
@click.option(
    "--from",
    "parent",
    envvar=CHECKPOINT_VARIABLE,
    show_envvar=True,
    metavar="REF",
    shell_complete=complete_checkpoint,
    help="The checkpoint: a path, JOB@best, JOB@last or JOB@STEP.",
)
@click.option("--accept-data-change", is_flag=True, help="Train on data that the checkpoint has not seen.")
@hyperparameters(resume=True)
@_request_options
@pass_place
@click.pass_context
def resume(context: click.Context, place: Place, /, **values: Any) -> None:
    """Go on from a checkpoint, with what you change and nothing else changed.

    What continues, what changes and what resets is printed before anything is queued. Values that you leave
    out are the checkpoint's; a learning rate given without a schedule means a constant one. Values come from
    gptjobs.toml in the root, --config, the environment (CHECKPOINT_PATH, BATCH_SIZE, BLOCK_SIZE,
    LEARNING_RATE, RESUME_STEPS, TRAINING_DATA_SOURCE), then options.
    """
    if not values["parent"]:
        raise UsageError("no checkpoint was named", hint="--from JOB@last; gptjobs checkpoints list")
    request = _request(context, place, kind="resume")
    _submit(
        context,
        place,
        replace(request, parent=values["parent"], accept_data_change=values["accept_data_change"]),
    )


def _request(context: click.Context, place: Place, *, kind: str) -> JobSpec:
    options = context.params
    if options["name"] is not None and not is_name(options["name"]):
        raise UsageError(
            f"{options['name']!r:.80} is no name for a job",
            hint="letters, digits, dot, dash and underscore, at most 64, beginning with a letter or digit",
        )
    if re.fullmatch(r"[0-9]+|[0-9a-f]{12}", options["name"] or ""):
        raise UsageError(f"'{options['name']}' looks like a step or a job's id", hint="a name with other letters")
    alone = {"--quiet": options["quiet"], "--json": options["as_json"], "--dry-run": options["dry_run"]}
    if options["follow"] and any(alone.values()):
        raise UsageError(
            f"--follow shows the job, {next(name for name, given in alone.items() if given)} does not",
            hint="leave one out; gptjobs watch JOB follows later",
        )
    overrides = said(context, place.layout, options["config"])
    check(overrides)
    spec = JobSpec(
        id=new_job_id() if options["idempotency_key"] is None else job_id_of_key(options["idempotency_key"]),
        kind=kind,
        name=options["name"],
        overrides=overrides,
        device=options["device"],
        priority=options["priority"],
        submitted_at=time.time(),
    )
    if spec.device == "mps" and spec.gpus > 1:
        raise UsageError(f"--gpus {spec.gpus}, and Metal has one device", hint="leave --gpus out")
    return spec


def _submit(context: click.Context, place: Place, spec: JobSpec) -> None:
    options, talks = context.params, not (context.params["quiet"] or context.params["as_json"])
    plan, parent, outside = None, None, None
    if place.layout.is_there:
        place.check_root()
        spec, outside = _named_in_root(place.layout, spec)
        if spec.parent is not None:
            parent = find_checkpoint(place.layout, spec.parent, Path.cwd())
            spec = replace(spec, parent=parent.name)
        plan, _ = planning.plan(place.layout, spec, outside, parent)
        if parent is not None and parent.lies_at is None:
            checkpoint.verify(place.layout, parent)
            foreign.describe(place.layout.path(parent.name))
        spec = replace(spec, data_digest=plan.data_digest)
        planning.check_room(place.layout, plan, plan.settled.start_step, outside)
    else:
        _check_without_root(spec)
        if talks:
            output.say(f"{place.layout.root} is no storage root: the worker that takes the job checks the files")
    if talks and plan is not None:
        output.say(_what_will_happen(plan, parent))
    if plan is not None and outside is not None:
        target = _place_in_root(place.layout, outside, plan)
        if talks:
            output.say(f"{outside} lies outside the root; its copy for all hosts is {target}")
        if not options["dry_run"] and not target.exists():
            durable.copy(outside, target)
    if talks and parent is not None and parent.lies_at is not None:
        output.say(_what_is_adopted(place.layout, parent))
    if talks:
        _say_whose_name_it_is(place, spec)
    _find_workers(place, spec, options["require_worker"], options["dry_run"], talks)
    is_new = False
    if not options["dry_run"]:
        if parent is not None:
            adoption.commit(place.layout, parent)
        is_new = _queue(place, spec)
    _print_result(spec, plan, parent, options, is_new)
    if options["follow"]:
        watch_job(place, place.store.get(spec.id))


def _what_is_adopted(layout: Layout, parent: Checkpoint) -> str:
    if parent.lies_at is not None and layout.inside(parent.lies_at) is None:
        return f"{parent.lies_at} lies outside the root; its copy for all hosts is {parent.name}"
    return f"{parent.name} gets a manifest; the file stays as it is"


def _check_without_root(spec: JobSpec) -> None:
    """Refuse what can be seen without a file."""
    if spec.kind == "train":
        planning.data_named(settle(spec.overrides))


def _named_in_root(layout: Layout, spec: JobSpec) -> tuple[JobSpec, Path | None]:
    """The request with its data named relative to the root; and the file, if it lies outside and is to be
    copied to that name."""
    given = spec.overrides.get("data")
    if given is None:
        return spec, None
    typed = Path(given.value)
    path = next((each for each in (typed, layout.root / typed) if each.is_file()), None)
    if path is None:
        raise NotFound(f"there is no data file {typed}", hint="it is looked for here and in the storage root")
    name = layout.inside(path)
    outside = path if name is None else None
    if name is None:
        name = f"{layout.shared_data.name}/{path.name}"
    return replace(spec, overrides={**spec.overrides, "data": Given(name, given.origin)}), outside


def _place_in_root(layout: Layout, outside: Path, plan: Plan) -> Path:
    """Where a file from outside goes, as hosts see only the root; raises Refused where another one is."""
    target = layout.path(plan.settled.train.data)
    if target.exists() and tokens.digest_of(target) != plan.data_digest:
        raise Refused(
            f"{outside} lies outside the root, and another file is at {target} already",
            hint=f"copy it to {layout.shared_data} under a name of its own",
        )
    return target


def _say_whose_name_it_is(place: Place, spec: JobSpec) -> None:
    others = [each for each in jobs_on_record(place.layout) if spec.name is not None and each.name == spec.name]
    if others:
        newest = max(others, key=lambda each: each.submitted_at)
        output.say(f"note: job {newest.id} is called {spec.name} too; the name means the newest")


def _find_workers(place: Place, spec: JobSpec, require: bool, dry_run: bool, talks: bool) -> None:
    """Say, or refuse, where no worker could take the job. Raises RedisUnreachable, unless nothing is to be queued."""
    try:
        fitting = [each for each in place.store.workers() if spec.queue in each.queues]
    except RedisUnreachable as error:
        if not dry_run:
            raise
        if talks:
            output.say(f"note: {error.message}")
        return
    if any(each.schema >= SCHEMA for each in fitting):
        return
    words, hint = (
        "no worker is there" if spec.queue == ANY else f"no worker offers {spec.wants}",
        "gptjobs worker start" if spec.gpus == 1 else spec.worker_command,
    )
    if fitting:
        older = ", ".join(f"{each.name} ({each.version})" for each in fitting)
        words, hint = f"no worker reads jobs of gptjobs {__version__}: {older}", "update gptjobs on those hosts"
    if require:
        raise NoWorker(words, hint=hint)
    if talks:
        output.say(f"note: {words}; the job waits for one ({hint})")


def _queue(place: Place, spec: JobSpec) -> bool:
    """Whether it is a new job."""
    from gptjobs import control

    return control.submit(place.store, place.layout, place.app, spec)


def _what_will_happen(plan: Plan, parent: Checkpoint | None) -> str:
    if parent is not None:
        return contract.in_words(contract.contract(plan, parent))
    train, model = plan.settled.train, plan.settled.model
    lines = [
        f"train {model.n_layer} layers, {model.n_head} heads, width {model.n_embd} from scratch on {train.data}",
        f"      {train.steps:,} steps of {train.batch_size} × {train.block_size} tokens ({train.encoding})",
        f"      learning rate {contract.schedule_in_words(plan)}",
    ]
    if train.warmup_steps >= train.steps:
        lines.append(f"note: the warm-up of {train.warmup_steps} steps is as long as the job: --warmup-steps")
    return "\n".join(lines)


def _print_result(
    spec: JobSpec, plan: Plan | None, parent: Checkpoint | None, options: dict[str, Any], is_new: bool
) -> None:
    if options["as_json"]:
        settled = plan.settled.to_dict() if plan else None
        made = contract.contract(plan, parent).to_dict() if plan and parent else None
        queued = None if options["dry_run"] else spec.id
        output.as_json({"id": queued, "is_new": is_new, "name": spec.name, "config": settled, "contract": made})
        return
    if options["dry_run"]:
        output.say("dry run: nothing was queued")
        return
    output.result(spec.id)
    if not (options["quiet"] or options["follow"]):
        output.say(
            "queued. Next:" if is_new else "it was submitted before, with this key; nothing was queued again. Next:"
        )
        for command in ("watch", "show", "wait"):
            output.say(f"  gptjobs {command} {spec.called}")
