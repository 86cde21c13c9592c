"""`gptjobs show`: one job, with all that is known of it."""

from contextlib import suppress

import click

from gptjobs import checkpoint, contract, planning, record
from gptjobs.cli import output
from gptjobs.cli.complete import job_argument
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.config import Plan
from gptjobs.errors import GptjobsError
from gptjobs.job import Job, against_again


@click.command("show", epilog="Example: gptjobs show @   (@ is the newest job)")
@job_argument
@json_option
@pass_place
def show(place: Place, job: str, as_json: bool) -> None:
    """One job: state, progress, contract, config with origins, checkpoints."""
    found = place.find(job).job
    plan = record.read_plan(place.layout, found.spec.id) or _what_it_will_be(place, found)
    parent = checkpoint.read(place.layout, plan.parent) if plan and plan.parent else None
    made = contract.contract(plan, parent) if plan and parent else None
    checkpoints = checkpoint.counting(place.layout, found.spec.id)
    attempts = record.read_attempts(place.layout, found.spec.id)
    newest = attempts[-1] if attempts else None
    if as_json:
        output.as_json(
            {
                **found.to_dict(),
                "config": plan.settled.to_dict() if plan else None,
                "origins": dict(plan.settled.origins) if plan else None,
                "contract": made.to_dict() if made else None,
                "checkpoints": [each.to_dict() for each in checkpoints],
                "micro_batch": newest.micro_batch if newest else None,
                "alerts": [alert for each in attempts for alert in each.alerts],
                "parent": found.spec.parent,
                "notify": list(found.spec.notify),
            }
        )
        return
    _show_facts(place, found)
    if fewer := record.fewer_windows(newest, plan):
        output.result(f"  {fewer}")
    if alert := record.standing_alert(newest, checkpoints):
        output.result(f"  {alert}")
    if made:
        output.result("\n" + contract.in_words(made))
    if plan:
        _show_config(plan)
    if checkpoints:
        output.result("\ncheckpoints")
        for each in checkpoints:
            loss = output.number(each.manifest.losses.val_loss, ".4f")
            output.result(f"  step {each.manifest.step:>7}  val loss {loss:>7}  {each.name}")


def _what_it_will_be(place: Place, job: Job) -> Plan | None:
    """The plan that a job's first attempt will make, where the files for it are here."""
    with suppress(GptjobsError):
        return planning.plan(place.layout, job.spec)[0]
    return None


def _show_facts(place: Place, job: Job) -> None:
    shown = job.to_dict()
    name = f" ({job.spec.name})" if job.spec.name else ""
    output.result(f"job {job.spec.id}{name}: {output.coloured(job.state)}")
    if job.why:
        output.result(f"  {job.why}")
    if often := against_again(job.cause, job.fruitless):
        output.result(f"  {often}")
    outcome = record.read_outcome(place.layout, job.spec.id)
    if outcome and outcome.hint:
        output.result(f"  hint: {outcome.hint}")
    output.result(f"  submitted {output.when(job.spec.submitted_at)}, priority {job.priority}")
    if job.spec.notify:
        output.result(f"  told to {', '.join(job.spec.notify)}")
    if job.worker:
        output.result(f"  attempt {job.attempt} on {job.worker}, {shown['device']}")
    if shown["step"] is not None:
        output.result(
            f"  step {shown['step']} of {shown['end_step']}, {shown['tokens']:,} tokens, "
            f"train loss {output.number(shown['train_loss'], '.4f')}, "
            f"val loss {output.number(shown['val_loss'], '.4f')}"
        )
    for path in place.layout.log_files(job.spec.id)[-1:]:
        output.result(f"  log {path}")


def _show_config(plan: Plan) -> None:
    settled = plan.settled.to_dict()
    output.result("\nconfig")
    output.table(
        ("  NAME", "VALUE", "FROM"),
        [
            (f"  {name}", contract.value_in_words(value), plan.settled.origins[name])
            for name, value in {**settled["model"], **settled["train"]}.items()
        ],
    )
