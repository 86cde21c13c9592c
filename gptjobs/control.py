"""What users ask of jobs that are there: the one way in for the command line, workers and Flower."""

from gptjobs import checkpoint, record
from gptjobs.errors import NotFound
from gptjobs.job import Job, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.store import Store

_CANCELLED = "cancelled"


def cancel(store: Store, layout: Layout, job: Job) -> JobState:
    """Stop a job, a running one after a checkpoint; returns its state after. Terminal ones stay as they are.

    The request is in the storage root before Redis has it, where the root is here: losing Redis revives no job.
    """
    if job.state.is_terminal:
        return job.state
    id = job.spec.id
    if layout.is_there:
        record.write_cancel_request(layout, id)
    try:
        state = store.cancel(id, _CANCELLED)
    except NotFound:
        if not layout.is_there:
            raise
        return JobState.CANCELLING  # Redis was flushed: whoever puts the job back heeds the request on record
    if state is JobState.CANCELLED and layout.is_there:
        outcome = Outcome(state=state, reason=_CANCELLED)
        record.write_outcome(layout, id, outcome, checkpoint.latest_token(layout, id))
    return state
