"""What every submit does before it queues: data and checkpoint get their names in the storage root, workers are
looked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptjobs import __version__, checkpoint, durable, foreign, planning
from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.place import Place
from gptjobs.config import Given, Plan, settle
from gptjobs.data import tokens
from gptjobs.errors import NotFound, NoWorker, RedisUnreachable, Refused, UsageError
from gptjobs.job import ANY, SCHEMA, JobSpec
from gptjobs.layout import Layout, is_name
from gptjobs.reference import find_checkpoint


def check_name(name: str | None) -> None:
    """Raise UsageError for what cannot name a job or a sweep."""
    if name is not None and not is_name(name):
        raise UsageError(
            f"{name!r:.80} is no name for a job",
            hint="letters, digits, dot, dash and underscore, at most 64, beginning with a letter or digit",
        )
    if re.fullmatch(r"[0-9]+|[0-9a-f]{12}", name or ""):
        raise UsageError(f"'{name}' looks like a step or a job's id", hint="a name with other letters")


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A request that was planned against the storage root: its files have their names there, and stand up."""

    spec: JobSpec
    plan: Plan
    parent: Checkpoint | None
    outside: Path | None
    """the data, where it lies outside the root and is to be copied"""


def prepare(place: Place, spec: JobSpec) -> Ready:
    """Raises what stands against the job: Refused, NotFound, UsageError, NoSpace. Writes nothing."""
    layout, parent = place.layout, None
    place.check_root()
    spec, outside = _named_in_root(layout, spec)
    if spec.parent is not None:
        parent = find_checkpoint(layout, spec.parent, Path.cwd())
        spec = replace(spec, parent=parent.name)
    plan, _ = planning.plan(layout, spec, outside, parent)
    if parent is not None and parent.lies_at is None:
        checkpoint.verify(layout, parent)
        foreign.describe(layout.path(parent.name))
    planning.check_room(layout, plan, plan.settled.start_step, outside)
    return Ready(spec=replace(spec, data_digest=plan.data_digest), plan=plan, parent=parent, outside=outside)


def bring(layout: Layout, ready: Ready, *, talks: bool, is_dry: bool) -> None:
    """Copy data from outside to where hosts see it, unless nothing is to be done, and say what is brought."""
    if ready.outside is not None:
        target = _place_in_root(layout, ready.outside, ready.plan)
        if talks:
            output.say(f"{ready.outside} lies outside the root; its copy for all hosts is {target}")
        if not is_dry and not target.exists():
            durable.copy(ready.outside, target)
    if talks and ready.parent is not None and ready.parent.lies_at is not None:
        output.say(_what_is_adopted(layout, ready.parent))


def check_without_root(layout: Layout, spec: JobSpec, *, talks: bool) -> None:
    """Refuse what can be seen without a file."""
    if spec.kind == "train":
        planning.data_named(settle(spec.overrides))
    if talks:
        output.say(f"{layout.root} is no storage root: the worker that takes the job checks the files")


def _what_is_adopted(layout: Layout, parent: Checkpoint) -> str:
    if parent.lies_at is not None and layout.inside(parent.lies_at) is None:
        return f"{parent.lies_at} lies outside the root; its copy for all hosts is {parent.name}"
    return f"{parent.name} gets a manifest; the file stays as it is"


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


def say_who_is_told(notify: Sequence[str]) -> None:
    if notify:
        output.say(f"its end, spikes and a plateau are told to {', '.join(notify)}")


def find_workers(place: Place, spec: JobSpec, require: bool, dry_run: bool, talks: bool) -> None:
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
