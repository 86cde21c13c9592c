"""`gptjobs checkpoints`: what can be resumed from."""

from pathlib import Path

import click

from gptjobs import checkpoint
from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint, complete_job
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.reference import find_checkpoint, jobs_on_record, pick


@click.group("checkpoints")
def group() -> None:
    """What jobs wrote, and what can be resumed from."""


@group.command("list", epilog="Example: gptjobs checkpoints list @")
@click.argument("job", metavar="[JOB]", required=False, shell_complete=complete_job)
@json_option
@pass_place
def list_checkpoints(place: Place, job: str | None, as_json: bool) -> None:
    """The checkpoints of a job, or of all jobs, by step. Needs no Redis."""
    jobs = sorted(jobs_on_record(place.layout), key=lambda each: each.submitted_at)
    ids = [pick(job, jobs)] if job else [each.id for each in jobs]
    found = [each for id in ids for each in checkpoint.counting(place.layout, id)]
    if as_json:
        output.as_json({"checkpoints": [each.to_dict() for each in found]})
        return
    if not found:
        output.say("no checkpoints yet")
        return
    names = {each.name: each.id for each in jobs if each.name}  # the newest of a name has it
    called = {id: name for name, id in names.items()}
    output.table(
        ("REFERENCE", "STEP", "TOKENS", "TRAIN", "VAL", "CONTEXT", "SIZE", "STATUS"),
        [_row(each, called.get(each.manifest.job, each.manifest.job)) for each in found],
        right=(1, 2, 3, 4, 5, 6),
    )


def _row(each: Checkpoint, job: str) -> tuple[str, ...]:
    manifest = each.manifest
    return (
        f"{job}@{manifest.step}",
        str(manifest.step),
        f"{manifest.tokens:,}",
        output.number(manifest.losses.train_loss, ".4f"),
        output.number(manifest.losses.val_loss, ".4f"),
        output.number(manifest.losses.eval_context, "d"),
        output.size(manifest.size),
        manifest.status,
    )


@group.command("show", epilog="Example: gptjobs checkpoints show @best")
@click.argument("reference", metavar="REF", shell_complete=complete_checkpoint)
@json_option
@pass_place
def show(place: Place, reference: str, as_json: bool) -> None:
    """One checkpoint, by path or JOB@best, JOB@last, JOB@STEP. Needs no Redis."""
    found = find_checkpoint(place.layout, reference, Path.cwd())
    manifest = found.manifest
    if as_json:
        output.as_json({**found.to_dict(), "manifest": manifest.to_dict()})
        return
    losses, model = manifest.losses, manifest.settled.model
    output.result(found.name)
    output.result(f"  step {manifest.step}, {manifest.tokens:,} tokens, of job {manifest.job}")
    output.result(
        f"  train loss {output.number(losses.train_loss, '.4f')}, val loss "
        f"{output.number(losses.val_loss, '.4f')} at context {losses.eval_context}"
    )
    output.result(
        f"  {model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, {model.n_positions} positions, "
        f"{model.vocab_size} tokens"
    )
    output.result(f"  data {manifest.settled.train.data}, SHA-256 {manifest.data_digest}")
    output.result(f"  {output.size(manifest.size)}, SHA-256 {manifest.sha256}")
    output.result(f"  parent {manifest.parent or 'none: from scratch'}")
    output.result(f"  status {manifest.status}" + (f": {manifest.reason}" if manifest.reason else ""))
