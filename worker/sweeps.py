"""What a worker does for sweeps: the next trials when one has ended, and whether a trial is to stop early.

A sweep has no process of its own. Whoever ends a trial sees what is next, and every idle worker does so now and then;
that two do it at once does no harm, as a trial's number is taken by creating its file.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from gptjobs import adoption, control, record, reference, sweeping, trials
from gptjobs.broker import App
from gptjobs.config import Settled
from gptjobs.errors import GptjobsError, NotFound, RedisUnreachable
from gptjobs.job import JobSpec, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import LeaseStore, Unreachable
from gptjobs.sweep import NONE, Sweep, Trial
from gptjobs.trials import Tried
from worker import report

logger = logging.getLogger(__name__)


def is_to_stop(layout: Layout, spec: JobSpec) -> bool:
    """Whether the pruner of the job's sweep stops it at its newest evaluation, which is on record."""
    if spec.sweep is None or spec.trial is None or spec.to_the_end:
        return False
    with _edge(spec.sweep):
        sweep = trials.read_sweep(layout, spec.sweep)
        tried = trials.read(layout, sweep.id) if sweep.pruner != NONE else []
        if tried and tried[spec.trial].is_at_a_new_unit:
            from gptjobs import study

            return study.is_to_stop(sweep, tried, spec.trial)
    return False


def see_to(store: LeaseStore, layout: Layout, app: App, sweep: Sweep) -> Sweep | None:
    """`advance`, of a sweep that a client without the root may have submitted."""
    with _edge(sweep.id):
        if not layout.sweep_file(sweep.id).exists():
            record.write_addresses(layout, sweep.id, control.addresses_of(store, layout, sweep))
            _write_down(layout, sweep)
    return advance(store, layout, app, sweep.id) if layout.sweep_file(sweep.id).exists() else None


def _write_down(layout: Layout, sweep: Sweep) -> None:
    """With its files under their names in the root; one that cannot be ends at once, with the reason."""
    try:
        if sweep.parent is not None:
            found = adoption.commit(layout, reference.find_checkpoint(layout, sweep.parent))
            sweep = replace(sweep, parent=found.name)
        sweep.settled(*trials.start_of(layout, sweep))
    except GptjobsError as error:
        trials.write_sweep(layout, sweep)
        report.refuse(layout, sweep, error)
    else:
        trials.write_sweep(layout, sweep)


def advance(store: LeaseStore, layout: Layout, app: App, id: str) -> Sweep | None:
    """Submit what is next of a sweep, as much as there is room for; at its end, say what it found. Returns the sweep to
    the one worker that is to tell of its end."""
    with _edge(id):
        sweep = trials.read_sweep(layout, id)
        _advance(store, layout, app, sweep)
        if sweeping.state(layout, sweep) != trials.GOING_ON:
            is_first = store.end_sweep(id)
            return sweep if is_first and sweeping.state(layout, sweep) == trials.FINISHED else None
    return None


@contextmanager
def _edge(id: str) -> Iterator[None]:
    """The edge of a sweep: no fault in one ends the worker, or another's job."""
    try:
        yield
    except (Unreachable, RedisUnreachable) as error:
        logger.info("sweep %s waits: %s", id, error)
    except (GptjobsError, ModuleNotFoundError, OSError) as error:
        logger.warning("sweep %s does not go on: %s", id, error)
    except Exception:
        logger.exception("sweep %s does not go on", id)


def _advance(store: LeaseStore, layout: Layout, app: App, sweep: Sweep) -> None:
    if sweeping.state(layout, sweep) != trials.GOING_ON:
        return
    start = trials.start_of(layout, sweep)
    room = sweep.parallel or _slots(store, sweep)
    for each in trials.read(layout, sweep.id):
        if not each.jobs:
            control.submit(store, layout, app, sweep.job(each.trial, *start))
        elif each.goes_on and record.read_plan(layout, each.job) is None:
            _look_after(store, layout, app, each.job)
    while True:
        tried = trials.read(layout, sweep.id)
        if sum(each.goes_on for each in tried) >= room:
            return
        spec = _next(layout, sweep, tried, *start)
        if spec is not None:
            control.submit(store, layout, app, spec)
        elif len(tried) == sweep.trials:
            if not any(each.goes_on for each in tried):
                _end(layout, sweep, tried)
            return


def _look_after(store: LeaseStore, layout: Layout, app: App, job: str) -> None:
    """A job that no worker has begun: Redis may not have taken it, or know more than the root."""
    control.submit(store, layout, app, record.read_spec(layout, job))
    found = store.get(job)
    if found.state.is_terminal:  # cancelled by a client without the root
        record.write_outcome(layout, job, Outcome(state=found.state, reason=found.state.value), 0)


def _slots(store: LeaseStore, sweep: Sweep) -> int:
    """Of all workers that take its trials; one, where none is there."""
    return max(1, sum(len(each.slots) for each in store.workers() if sweep.device in each.queues))


def _next(
    layout: Layout, sweep: Sweep, tried: Sequence[Tried], parent: Settled | None, parent_step: int
) -> JobSpec | None:
    """The job that is next: of a trial that may go on after all, else of a new one, once its sample is written down;
    None where another worker took its number, or there is none."""
    if promoted := _promoted(layout, sweep, tried):
        return promoted
    number = len(tried)
    if number == sweep.trials:
        return None
    trial = Trial(number=number, params=sweep.point(number)) if sweep.has_fixed_points else _sampled(sweep, tried)
    if not trials.write_trial(layout, sweep.id, trial):
        return None
    logger.info("sweep %s: trial %d is %s", sweep.called, number, trial)
    return sweep.job(trial, parent, parent_step)


def _promoted(layout: Layout, sweep: Sweep, tried: Sequence[Tried]) -> JobSpec | None:
    """The rest of the best of the trials that their pruner had stopped, and would not stop any more."""
    if sweep.pruner == NONE:
        return None
    from gptjobs import study

    found = study.can_be_let_go_on(sweep, tried)
    for each in sorted(found, key=lambda each: each.last.val_loss if each.last else 0.0):
        with suppress(NotFound):  # its checkpoints are gone, or in quarantine: it stays where it is
            spec = sweeping.next_part(layout, sweep, each)
            logger.info("sweep %s: trial %d goes on", sweep.called, each.trial.number)
            return spec
    return None


def _sampled(sweep: Sweep, tried: Sequence[Tried]) -> Trial:
    from gptjobs import study

    return study.suggest(sweep, tried)


def _end(layout: Layout, sweep: Sweep, tried: Sequence[Tried]) -> None:
    if not layout.summary_file(sweep.id).exists():
        report.summarise(layout, sweep, tried)
        logger.info("sweep %s: finished", sweep.called)
