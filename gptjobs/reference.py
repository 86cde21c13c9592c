"""How users name things: a job by id, unique prefix, name or `@`; a checkpoint by path or `JOB@best`."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from gptjobs import adoption, checkpoint, foreign, trials
from gptjobs.checkpoint import GOOD, Checkpoint
from gptjobs.config import Overrides
from gptjobs.errors import NotFound, Refused, UsageError
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.sweep import Sweep

NEWEST = "@"
BEST = "best"
LAST = "last"


@dataclass(frozen=True)
class Known:
    """A job that a reference may mean."""

    id: str
    name: str | None
    submitted_at: float


def pick(reference: str, jobs: Sequence[Known]) -> str:
    """The id that `reference` means: an id, the newest job of that name, a unique prefix, or `@`."""
    newest_first = sorted(jobs, key=lambda each: each.submitted_at, reverse=True)
    if reference == NEWEST:
        if not newest_first:
            raise NotFound("there are no jobs yet", hint="gptjobs submit train --help")
        return newest_first[0].id
    for each in (*(job for job in jobs if job.id == reference), *newest_first):
        if reference in (each.id, each.name):
            return each.id
    starting = [each.id for each in newest_first if reference and each.id.startswith(reference)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise UsageError(f"'{reference}' could be {', '.join(starting[:5])}", hint="type more of the job's id")
    words = [each.id for each in jobs] + [each.name for each in jobs if each.name]
    close = get_close_matches(reference, words, n=1)
    raise NotFound(
        f"no job is called '{reference}'",
        hint=f"did you mean {close[0]}?" if close else "gptjobs list",
    )


def jobs_on_record(layout: Layout) -> list[Known]:
    """The jobs that the storage root knows."""
    found = []
    for path in layout.outputs.glob("*/job.json"):
        with suppress(
            ValueError, KeyError, TypeError, AttributeError, RecursionError, Refused
        ):  # one that cannot be read hides no other job
            spec = JobSpec.from_dict(json.loads(path.read_bytes()))
            found.append(Known(spec.id, spec.name, spec.submitted_at))
    return found


def find_sweep(layout: Layout, reference: str) -> Sweep:
    """The sweep that a user means, as a job is meant; raises NotFound, or UsageError where it could be several."""
    known = trials.sweeps(layout)
    if not known:
        raise NotFound("there are no sweeps yet", hint="gptjobs submit sweep --help")
    try:
        id = pick(reference, [Known(each.id, each.name, each.submitted_at) for each in known])
    except NotFound:
        raise NotFound(f"no sweep is called '{reference}'", hint="gptjobs sweep list") from None
    return next(each for each in known if each.id == id)


def find_checkpoint(layout: Layout, reference: str, folder: Path | None = None) -> Checkpoint:
    """The checkpoint that `reference` means: a path, from `folder` (a client's) or the root, or JOB@best,
    JOB@last, JOB@STEP. One of another program, or from outside the root, is still to be committed. Raises Refused
    for a path out of the root where there is no `folder`: a request from elsewhere names files of the root only."""
    if "@" in reference and not reference.endswith(checkpoint.SUFFIXES):
        job, _, which = reference.rpartition("@")
        try:
            id = pick(job or NEWEST, jobs_on_record(layout))
        except NotFound:
            sweep = next((each for each in trials.sweeps(layout) if job in (each.id, each.name)), None)
            if sweep is None:
                raise
            return _of_sweep(layout, sweep, which)
        return _of_job(layout, id, which)
    for path in [layout.path(reference)] if folder is None else [folder / reference, layout.root / reference]:
        if path.is_file() or foreign.is_folder(path):
            return checkpoint_at(layout, path)
        if path.is_dir():
            raise NotFound(
                f"{reference} is a folder without {foreign.CONFIG_FILE} and {' or '.join(foreign.WEIGHTS_FILES)}",
                hint="name a file in it",
            )
    if reference.endswith(checkpoint.SUFFIXES) or "/" in reference:
        raise NotFound(f"there is no checkpoint {reference}", hint="gptjobs checkpoints list")
    raise NotFound(
        f"'{reference}' is no checkpoint",
        hint=f"a path, {reference}@best, {reference}@last or {reference}@STEP",
    )


def checkpoint_at(
    layout: Layout, path: Path, said: Overrides | None = None, advance: Callable[[int], None] = lambda count: None
) -> Checkpoint:
    """The checkpoint in this file or Hugging Face folder; see `adopt` for what is told of one without a manifest."""
    path = foreign.weights_in(path)
    name = layout.inside(path)
    if not checkpoint.manifest_path(path).exists():
        return adoption.adopt(layout, path, said, advance)
    return adoption.bring(layout, path) if name is None else checkpoint.read(layout, name)


def _of_sweep(layout: Layout, sweep: Sweep, which: str) -> Checkpoint:
    if which != BEST:
        raise UsageError(f"{sweep.called} is a sweep, and has no checkpoint '{which}'", hint=f"{sweep.called}@best")
    return trials.best_checkpoint(layout, sweep.id)


def _of_job(layout: Layout, job: str, which: str) -> Checkpoint:
    counting = checkpoint.counting(layout, job)
    quarantined = [each for each in checkpoint.listed(layout, job) if each.manifest.status != GOOD]
    named = next((each for each in quarantined if str(each.manifest.step) == which), None)
    if named is not None and named.manifest.step not in {each.manifest.step for each in counting}:
        return named
    if not counting and quarantined:
        raise NotFound(
            f"all {len(quarantined)} checkpoints of job {job} are in quarantine",
            hint=f"gptjobs checkpoints list {job}; gptjobs checkpoints release puts one back",
        )
    if not counting:
        raise NotFound(f"job {job} has no checkpoint yet", hint=f"gptjobs logs {job}")
    if which == LAST:
        return counting[-1]
    if which == BEST:
        best = checkpoint.best(counting)
        if best is None:
            raise NotFound(f"no checkpoint of {job} has a validation loss", hint=f"{job}@last")
        return best
    steps = [each.manifest.step for each in counting]
    if which.isascii() and which.isdigit() and int(which) in steps:
        return counting[steps.index(int(which))]
    close = get_close_matches(which, (BEST, LAST), n=1, cutoff=0.7)
    raise NotFound(
        f"job {job} has no checkpoint '{which}'",
        hint=f"did you mean {job}@{close[0]}?"
        if close
        else f"best, last, or one of the steps {', '.join(map(str, steps[-8:]))}",
    )
