"""`gptjobs checkpoints verify, quarantine, release, prune`: which checkpoints are to be trusted, and kept."""

from pathlib import Path

import click

from gptjobs import checkpoint, inspection, registry
from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint, complete_job
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.errors import RedisUnreachable, Refused, UsageError
from gptjobs.job import plain
from gptjobs.layout import Layout
from gptjobs.reference import jobs_on_record, pick


@click.command(epilog="Example: gptjobs checkpoints verify @best")
@click.argument("references", metavar="[REF...]", nargs=-1, shell_complete=complete_checkpoint)
@click.option("--quarantine", "puts_away", is_flag=True, help="Put those that fail into quarantine.")
@json_option
@pass_place
def verify(place: Place, references: tuple[str, ...], puts_away: bool, as_json: bool) -> None:
    """Check that checkpoints are whole: the SHA-256 of their manifests, tensors that can be read, finite weights.

    Without REF, all that are not in quarantine. Exit 3 if one is not whole.
    """
    found = _meant(place.layout, references) if references else _all_good(place.layout)
    faults: dict[str, str] = {}
    with output.bytes_bar(sum(each.manifest.size for each in found), f"verifying {len(found)}") as advance:
        for each in found:
            if fault := inspection.fault(place.layout, each, advance):
                faults[each.name] = fault
                if puts_away:
                    checkpoint.quarantine(place.layout, each, f"verify: {fault}")
    if as_json:
        output.as_json({"verified": len(found), "faults": faults})
    for name, fault in faults.items() if not as_json else ():
        output.result(f"{name}: {fault}")
    if faults:
        hint = "they are in quarantine now" if puts_away else "gptjobs checkpoints verify --quarantine puts them away"
        raise Refused(f"{len(faults)} of {len(found)} checkpoints are not whole", hint=hint)
    if not as_json:
        output.say(f"{len(found)} {'checkpoint is' if len(found) == 1 else 'checkpoints are'} whole")


def _all_good(layout: Layout) -> list[Checkpoint]:
    of_jobs = [each for job in jobs_on_record(layout) for each in checkpoint.of_job(layout, job.id)]
    return [each for each in (*of_jobs, *checkpoint.brought(layout)) if each.manifest.status == checkpoint.GOOD]


def _meant(layout: Layout, references: tuple[str, ...]) -> list[Checkpoint]:
    found = {each.name: each for reference in references for each in registry.meant(layout, reference, Path.cwd())}
    for each in found.values():
        if each.lies_at is not None:
            raise Refused(f"{each.name} has no manifest yet", hint=f"gptjobs checkpoints import {each.lies_at}")
    return list(found.values())


_references = click.argument(
    "references", metavar="REF...", nargs=-1, required=True, shell_complete=complete_checkpoint
)  # fmt: skip


@click.command(epilog="Example: gptjobs checkpoints quarantine plateau@2000.. --reason spike")
@_references
@click.option("--reason", default=registry.BY_HAND, show_default=True, help="Why, for whoever meets it later.")
@json_option
@pass_place
def quarantine(place: Place, references: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Have checkpoints not be used: @best and @last pass them over, and a resume from one is refused.

    JOB@2000.. means all of the job from step 2000 on, JOB@2000..2500 those to 2500.
    """
    place.check_root()
    _tell(registry.quarantine(place.layout, _meant(place.layout, references), plain(reason)), "in quarantine", as_json)


@click.command(epilog="Example: gptjobs checkpoints release plateau@2000")
@_references
@json_option
@pass_place
def release(place: Place, references: tuple[str, ...], as_json: bool) -> None:
    """Take checkpoints out of quarantine, if their files are whole."""
    place.check_root()
    _tell(registry.release(place.layout, _meant(place.layout, references)), "good", as_json)


def _tell(changed: list[Checkpoint], words: str, as_json: bool) -> None:
    if as_json:
        output.as_json({"checkpoints": [each.to_dict() for each in changed]})
        return
    for each in changed:
        output.result(f"{each.name}  {words}")
    if not changed:
        output.say("nothing changed: they were that already")


@click.command(epilog="Example: gptjobs checkpoints prune @ --keep-best 3 --keep-last 2 --keep-every 5000 --dry-run")
@click.argument("jobs", metavar="[JOB...]", nargs=-1, shell_complete=complete_job)
@click.option("--keep-best", type=click.IntRange(0), default=3, show_default=True, help="Those of the lowest loss.")
@click.option("--keep-last", type=click.IntRange(0), default=2, show_default=True, help="The newest so many.")
@click.option("--keep-every", type=click.IntRange(0), default=0, help="Also those at multiples of so many steps.")
@click.option("--dry-run", is_flag=True, help="Show what would go; delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_place
def prune(
    place: Place, jobs: tuple[str, ...], keep_best: int, keep_last: int, keep_every: int, dry_run: bool, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Delete checkpoints that are not to be kept, of these jobs or of all.

    Kept are always what a job that has not ended, or a sweep, starts from, and a job's only good one.
    """
    place.check_root()
    known = jobs_on_record(place.layout)
    ids = dict.fromkeys([pick(each, known) for each in jobs] or [each.id for each in known])
    used = registry.in_use(place.layout, _parents_in_redis(place))
    keep = {"keep_best": keep_best, "keep_last": keep_last}
    going = [
        each
        for id in ids
        for each in registry.superfluous(place.layout, id, **keep, keep_every=keep_every, used=used)
    ]  # fmt: skip
    size = sum(each.manifest.size for each in going)
    if going and not dry_run and not yes:
        _ask_to_delete(going, size)
    if not dry_run:
        registry.remove(place.layout, going)
    if as_json:
        names = [each.name for each in going]
        output.as_json({"deleted": [] if dry_run else names, "would_delete": names if dry_run else [], "bytes": size})
        return
    for each in going:
        output.result(f"{each.name}  {output.size(each.manifest.size)}")
    count = "1 checkpoint" if len(going) == 1 else f"{len(going)} checkpoints"
    output.say(f"{count}, {output.size(size)}, {'would be ' if dry_run else ''}deleted")


def _parents_in_redis(place: Place) -> list[str | None]:
    """What jobs and sweeps start from that Redis has, and the root may not know yet."""
    try:
        jobs = [each.spec.parent for each in place.store.all() if not each.state.is_terminal]
        return [*jobs, *(each.parent for each in place.store.sweeps())]
    except RedisUnreachable as error:
        output.say(f"note: {error.message}; what clients without the root have queued is not known")
        return []


def _ask_to_delete(going: list[Checkpoint], size: int) -> None:
    words = f"{len(going)} checkpoints of {output.size(size)}"
    if not output.is_terminal():
        raise UsageError(f"{words} would be deleted", hint="--dry-run shows them, --yes deletes them")
    for each in going:
        output.say(f"{each.name}  {output.size(each.manifest.size)}")
    click.confirm(f"Delete these {words}?", abort=True, err=True)
