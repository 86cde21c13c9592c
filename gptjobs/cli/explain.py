"""`gptjobs explain`: why a job is in its state, and what to type."""

import time
from typing import TYPE_CHECKING

import click

from gptjobs import checkpoint, record
from gptjobs.cli import output
from gptjobs.cli.complete import job_argument
from gptjobs.cli.follow import end_of_log
from gptjobs.cli.place import Found, Place, json_option, pass_place
from gptjobs.layout import Layout

if TYPE_CHECKING:
    from gptjobs.explain import Past, Queue

LOG_LINES = 8


@click.command(epilog="Example: gptjobs explain @")
@job_argument
@json_option
@pass_place
def explain(place: Place, job: str, as_json: bool) -> None:
    """Why a job waits, runs or ended as it did; what happens next, and what to type."""
    from gptjobs.explain import explain as decide

    found = place.find(job)
    spec, state = found.job.spec, found.job.state
    explanation = decide(found.job, _past(place.layout, spec.id), _queue(place, found), now=time.time())
    if as_json:
        output.as_json(
            {
                "id": spec.id,
                "name": spec.name,
                "state": state.value,
                "because": list(explanation.because),
                "next": list(explanation.next),
            }
        )
        return
    name = f" ({spec.name})" if spec.name else ""
    on_record = "on record as " if found.missing else ""
    output.result(f"job {spec.id}{name}: {on_record}{output.coloured(state)}")
    for line in explanation.because:
        output.result(f"  {line}")
    output.result("next")
    for line in explanation.next:
        output.result(f"  {line}")


def _past(layout: Layout, job: str) -> "Past":
    from gptjobs.explain import Past

    if not layout.is_there:
        return Past(is_elsewhere=True)
    outcome, logs = record.read_outcome(layout, job), layout.log_files(job)
    return Past(
        plan=record.read_plan(layout, job),
        attempts=record.read_attempts(layout, job),
        checkpoints=checkpoint.counting(layout, job),
        hint=outcome.hint if outcome else None,
        log=str(logs[-1]) if logs else None,
        log_end=end_of_log(layout, job)[-LOG_LINES:],
    )


def _queue(place: Place, found: Found) -> "Queue":
    from gptjobs.explain import Queue

    if found.missing:
        return Queue(missing=found.missing)
    return Queue(jobs=place.store.all(), workers=place.store.workers())
