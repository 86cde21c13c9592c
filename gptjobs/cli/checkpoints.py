"""`gptjobs checkpoints`: what can be resumed from."""

import shlex
import time
from collections.abc import Container, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from gptjobs import adoption, checkpoint, contract, foreign, registry
from gptjobs.checkpoint import Checkpoint
from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint, complete_job
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.tensors import export, sample
from gptjobs.cli.trust import prune, quarantine, release, verify
from gptjobs.config import ACTIVATIONS, VOCABULARY, Given, option
from gptjobs.data import encoding as encodings
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.layout import Layout
from gptjobs.progress import duration
from gptjobs.reference import checkpoint_at, find_checkpoint, jobs_on_record, pick


@click.group("checkpoints")
def group() -> None:
    """What jobs and other programs wrote, and what can be resumed from."""


for each in (verify, quarantine, release, prune, export, sample):
    group.add_command(each)


@group.command("list", epilog="Example: gptjobs checkpoints list @")
@click.argument("job", metavar="[JOB]", required=False, shell_complete=complete_job)
@json_option
@pass_place
def list_checkpoints(place: Place, job: str | None, as_json: bool) -> None:
    """The checkpoints of a job, or of all jobs and all that were imported. Needs no Redis."""
    jobs = sorted(jobs_on_record(place.layout), key=lambda each: each.submitted_at)
    ids = [pick(job, jobs)] if job else [each.id for each in jobs]
    of_jobs = {id: checkpoint.listed(place.layout, id) for id in ids}
    brought = checkpoint.brought(place.layout) if job is None else []
    found = [each for checkpoints in of_jobs.values() for each in checkpoints] + brought
    if as_json:
        output.as_json({"checkpoints": [_record(place.layout, each) for each in found]})
        return
    if not found:
        output.say("no checkpoints yet")
        return
    names = {each.name: each.id for each in jobs if each.name}  # the newest of a name has it
    called = {id: name for name, id in names.items()}
    references = {each.name: f"{called.get(id, id)}@{each.manifest.step}" for id in ids for each in of_jobs[id]}
    tainted = {each.name for each in found if registry.taint(place.layout, each)}
    _table([_row(each, references.get(each.name, each.name), references, tainted) for each in found])


def _table(rows: list[tuple[str, ...]]) -> None:
    headers = ("REFERENCE", "STEP", "TOKENS", "TRAIN", "VAL", "CONTEXT", "SIZE", "AGE", "PARENT", "STATUS")
    output.table(headers, rows, right=(1, 2, 3, 4, 5, 6, 7))


def _row(
    each: Checkpoint, reference: str, references: Mapping[str, str] = MappingProxyType({}), tainted: Container[str] = ()
) -> tuple[str, ...]:
    manifest = each.manifest
    age = None if manifest.written_at is None else duration(max(0.0, time.time() - manifest.written_at))
    parent = manifest.parent or "-"
    return (
        reference,
        str(manifest.step),
        f"{manifest.tokens:,}",
        output.number(manifest.losses.train_loss, ".4f"),
        output.number(manifest.losses.val_loss, ".4f"),
        output.number(manifest.losses.eval_context, "d"),
        output.size(manifest.size),
        age or "-",
        references.get(parent, parent.rpartition("/")[2]),
        f"{manifest.status}, tainted" if each.name in tainted else manifest.status,
    )


@group.command("show", epilog="Example: gptjobs checkpoints show @best")
@click.argument("reference", metavar="REF", shell_complete=complete_checkpoint)
@json_option
@pass_place
def show(place: Place, reference: str, as_json: bool) -> None:
    """One checkpoint, by path or JOB@best, JOB@last, JOB@STEP. Needs no Redis."""
    found = find_checkpoint(place.layout, reference, Path.cwd())
    if as_json:
        lineage = [each.to_dict() for each in registry.ancestry(place.layout, found)[1:]]
        output.as_json({**_record(place.layout, found), "lineage": lineage, "manifest": found.manifest.to_dict()})
        return
    _show(found)
    _show_lineage(place.layout, found)
    if found.lies_at is not None:
        output.say("not imported yet; submit resume --from does it, as does gptjobs checkpoints import")


def _record(layout: Layout, found: Checkpoint) -> dict[str, Any]:
    tainted_by = registry.taint(layout, found)
    return {**found.to_dict(), "tainted_by": tainted_by.name if tainted_by else None}


def in_quarantine(found: Checkpoint) -> str:
    """One that is, in words."""
    return f"{found.name}, which is in quarantine: {found.manifest.reason}"


def _show_lineage(layout: Layout, found: Checkpoint) -> None:
    """Where it comes from: the last checkpoint of each job before, and what its next job has otherwise."""
    chain = registry.ancestry(layout, found)
    if tainted_by := registry.taint(layout, found):
        output.result(f"  tainted: it descends from {in_quarantine(tainted_by)}")
    for child, parent in pairwise(chain):
        if child.manifest.job == parent.manifest.job:
            continue
        output.result(f"  from {parent.name}")
        for change in contract.changes(parent.manifest.settled, child.manifest.settled):
            words = f"{contract.value_in_words(change.before)} → {contract.value_in_words(change.after)}"
            output.result(f"    {change.name}  {words}")


def _show(found: Checkpoint) -> None:
    manifest = found.manifest
    losses, model = manifest.losses, manifest.settled.model
    writer = f"job {manifest.job}" if manifest.job else manifest.layout
    context = "" if losses.eval_context is None else f" at context {losses.eval_context}"
    data = manifest.settled.train.data or manifest.data_name
    output.result(found.name)
    output.result(f"  step {manifest.step}, {manifest.tokens:,} tokens, of {writer}")
    output.result(
        f"  train loss {output.number(losses.train_loss, '.4f')}, val loss "
        f"{output.number(losses.val_loss, '.4f')}{context}"
    )
    output.result(
        f"  {model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, {model.n_positions} positions, "
        f"{model.vocab_size} tokens"
    )
    if manifest.layout != foreign.OWN:
        for line in contract.reads(manifest):
            output.result(f"  {line}")
    output.result(f"  optimizer's moments: {'there' if manifest.has_moments else 'none that fit'}")
    output.result(f"  data {data}, SHA-256 {manifest.data_digest or 'unknown'}")
    output.result(f"  {output.size(manifest.size)}, SHA-256 {manifest.sha256}")
    output.result(f"  parent {manifest.parent or ('none: from scratch' if manifest.job else 'unknown')}")
    output.result(f"  status {manifest.status}" + (f": {manifest.reason}" if manifest.reason else ""))


@group.command("import", epilog="Example: gptjobs checkpoints import ~/nanoGPT/out/ckpt.pt")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--n-head", type=click.IntRange(1), help="Attention heads, where the file does not say.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), help="Which GELU, where the file does not say.")
@click.option("--encoding", type=click.Choice(list(VOCABULARY)), help="Where the table of tokens does not tell.")
@json_option
@pass_place
def import_checkpoints(place: Place, /, paths: tuple[Path, ...], as_json: bool, **told: Any) -> None:
    """Adopt checkpoints of other programs: nanoGPT's, state dicts, Hugging Face GPT-2 folders.

    A PATH is a file, a Hugging Face folder, or a folder full of checkpoints. A file stays as it is and gets a
    manifest beside it that says where each fact comes from; one from outside the storage root is copied below
    checkpoints/imported/. `submit resume --from FILE` does the same for one file.
    """
    if not place.layout.is_there:
        raise NotFound(f"{place.layout.root} is no storage root", hint="--root DIR; gptjobs up makes one")
    place.check_root()
    said = {name: Given(value, option(name)) for name, value in told.items() if value is not None}
    files = [each for path in paths for each in _files_in(path)]
    imported: list[Checkpoint] = []
    refused: list[GptjobsError] = []
    with output.bytes_bar(sum(each.stat().st_size for each in files), f"importing {len(files)}") as advance:
        for each in files:
            try:
                found = checkpoint_at(place.layout, each, said, advance)
                if found.lies_at is None:
                    output.say(f"{found.name} has a manifest already; it stays as it is")
                else:
                    imported.append(adoption.commit(place.layout, found))
            except GptjobsError as error:
                refused.append(error)
    if as_json:
        output.as_json(
            {"imported": [each.to_dict() for each in imported], "refused": [each.message for each in refused]}
        )
    elif len(imported) == 1:
        _show(imported[0])
    elif imported:
        _table([_row(each, each.name) for each in imported])
    if len(refused) == 1:
        raise refused[0]
    if refused:
        reasons = "\n".join(f"  {each.message}" for each in refused)
        raise Refused(f"{len(refused)} of {len(files)} files were not imported:\n{reasons}", hint=refused[0].hint)
    if imported and not as_json:
        if not encodings.file(place.layout).is_file():
            output.say("first, for models of GPT-2's encoding: gptjobs data encoding")
        output.say(f"next: gptjobs submit resume --from {shlex.quote(imported[-1].name)} --data FILE")


def _files_in(path: Path) -> list[Path]:
    """The files of tensors that a path means."""
    if not path.exists():
        raise NotFound(f"there is no file or folder {path}")
    if not path.is_dir() or foreign.is_folder(path):
        return [foreign.weights_in(path)]
    inside = [each for each in sorted(path.iterdir()) if foreign.is_folder(each) or _is_checkpoint(each)]
    if not inside:
        raise NotFound(f"no checkpoint lies in {path}", hint=f"files ending in {', '.join(checkpoint.SUFFIXES)}")
    return [foreign.weights_in(each) for each in inside]


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() and path.suffix in checkpoint.SUFFIXES and not path.name.startswith(".")
