"""`gptjobs submit`: train and resume jobs."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gptjobs import adoption, contract, notify, registry
from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.checkpoints import in_quarantine
from gptjobs.cli.complete import complete_checkpoint
from gptjobs.cli.options import CHECKPOINT_VARIABLE, addresses, hyperparameters, notify_option, said
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.prepare import bring, check_name, check_without_root, find_workers, prepare, say_who_is_told
from gptjobs.cli.submit_sweep import sweep
from gptjobs.cli.watch import watch_job
from gptjobs.config import Plan, check
from gptjobs.errors import UsageError
from gptjobs.job import ANY, DEFAULT_PRIORITY, DEVICES, HIGHEST_PRIORITY, JobSpec
from gptjobs.layout import Layout, job_id_of_key, new_job_id
from gptjobs.reference import jobs_on_record


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
        notify_option,
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


group.add_command(sweep)


@group.command(epilog="Example: gptjobs submit train --model nano --data book.md --steps 1500 --batch-size 8")
@hyperparameters(of="train")
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
@click.option("--allow-quarantined", is_flag=True, help="Go on from a checkpoint that is in quarantine.")
@hyperparameters(of="resume")
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
        replace(
            request,
            parent=values["parent"],
            accept_data_change=values["accept_data_change"],
            allow_quarantined=values["allow_quarantined"],
        ),
    )


def _request(context: click.Context, place: Place, *, kind: str) -> JobSpec:
    options = context.params
    check_name(options["name"])
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
    urls = addresses(context, place.layout, options["config"])
    spec, plan, parent = replace(spec, notify=notify.masked_all(urls)), None, None
    if place.layout.is_there:
        ready = prepare(place, spec)
        spec, plan, parent = ready.spec, ready.plan, ready.parent
        if talks:
            output.say(_what_will_happen(place.layout, plan, parent))
        bring(place.layout, ready, talks=talks, is_dry=options["dry_run"])
    else:
        check_without_root(place.layout, spec, talks=talks)
    if talks:
        _say_whose_name_it_is(place, spec)
        say_who_is_told(spec.notify)
    find_workers(place, spec, options["require_worker"], options["dry_run"], talks)
    is_new = False
    if not options["dry_run"]:
        if parent is not None:
            adoption.commit(place.layout, parent)
        is_new = _queue(place, spec, urls)
    _print_result(spec, plan, parent, options, is_new)
    if options["follow"]:
        watch_job(place, place.store.get(spec.id))


def _say_whose_name_it_is(place: Place, spec: JobSpec) -> None:
    others = [each for each in jobs_on_record(place.layout) if spec.name is not None and each.name == spec.name]
    if others:
        newest = max(others, key=lambda each: each.submitted_at)
        output.say(f"note: job {newest.id} is called {spec.name} too; the name means the newest")


def _queue(place: Place, spec: JobSpec, urls: Sequence[str]) -> bool:
    """Whether it is a new job."""
    from gptjobs import control

    return control.submit(place.store, place.layout, place.app, spec, urls)


def _what_will_happen(layout: Layout, plan: Plan, parent: Checkpoint | None) -> str:
    if parent is not None:
        words = contract.in_words(contract.contract(plan, parent))
        tainted_by = registry.taint(layout, parent)
        return words if tainted_by is None else f"{words}\nnote: it descends from {in_quarantine(tainted_by)}"
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
        notified = list(spec.notify)
        output.as_json(
            {"id": queued, "is_new": is_new, "name": spec.name, "notify": notified, "config": settled, "contract": made}
        )
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
