"""From a request to a plan, against the storage root: what will be trained, on what, from where.

The client plans to refuse early and to show the contract; the worker that takes the job plans again, for
clients that have no root. Both get the same plan.
"""

import math
import shutil
from pathlib import Path

from gptjobs.checkpoint import GOOD, Checkpoint
from gptjobs.config import BYTES, HELD_OUT_PART, ModelConfig, Plan, Settled, settle
from gptjobs.data import encoding, tokens
from gptjobs.errors import NoSpace, NotFound, Refused, UsageError
from gptjobs.job import JobSpec
from gptjobs.layout import Layout, dataset_name
from gptjobs.reference import find_checkpoint

FLOAT_BYTES = 3 * 4
"""of a weight in a checkpoint: itself and the optimizer's two moments"""
TOKEN_BYTES = 2
"""of a token; a byte of text is at most one"""


def plan(
    layout: Layout, spec: JobSpec, source: Path | None = None, parent: Checkpoint | None = None
) -> tuple[Plan, Checkpoint | None]:
    """The plan of a job and the checkpoint it starts from, which is `parent` where that was found already.
    `source` is where the data is, if it is to be copied to its name in the root. Raises UsageError, Refused or
    NotFound with what stands against it; reads the source once, for its SHA-256, where the request does not
    name it."""
    if parent is None and spec.parent is not None:
        parent = find_checkpoint(layout, spec.parent)
    if parent is not None and parent.manifest.status != GOOD and not spec.allow_quarantined:
        raise Refused(
            f"the checkpoint {parent.name} is {parent.manifest.status}: {parent.manifest.reason}",
            hint="another one: gptjobs checkpoints list; or --allow-quarantined",
        )
    if parent is None:
        settled = settle(spec.overrides)
    else:
        settled = settle(spec.overrides, parent=parent.manifest.settled, parent_step=parent.manifest.step)
    source = source or layout.path(data_named(settled))
    digest = spec.data_digest or _digest(layout, settled, parent, source)
    trained_on = parent.manifest.data_digest if parent is not None else None
    if parent is not None and trained_on and trained_on != digest and not spec.accept_data_change:
        raise Refused(
            f"the data {settled.train.data} is not what the checkpoint was trained on: SHA-256 {digest[:12]}…, "
            f"not {trained_on[:12]}… of {parent.manifest.data_name}",
            hint="--accept-data-change trains on it, from its beginning",
        )
    made = Plan(
        job=spec.id,
        kind=spec.kind,
        settled=settled,
        data_name=dataset_name(settled.train.data),
        data_digest=digest,
        parent=parent.name if parent else None,
    )
    _check_data(layout, made, source)
    return made, parent


def check_room(layout: Layout, made: Plan, step: int, outside: Path | None = None) -> None:
    """Raise NoSpace where what the job will keep from `step` on does not fit: its checkpoints, its tokens, and a
    copy of a source from outside."""
    steps, interval = made.settled.end_step - step, made.settled.train.checkpoint_interval
    count = made.settled.end_step // interval - step // interval + (made.settled.end_step % interval > 0)
    size, data = checkpoint_bytes(made.settled.model), _data_bytes(layout, made, outside)
    free = shutil.disk_usage(layout.checkpoints).free
    if count * size + data <= free:
        return
    fit = (free - data) // size
    fewer = f", or --checkpoint-interval {math.ceil(steps / (fit - 1))}" if fit > 1 else ""
    raise NoSpace(
        f"there is no space for what the job will keep: {count:,} checkpoints of {size / 1e6:,.0f} MB and "
        f"{data / 1e6:,.0f} MB of data, where {free / 1e6:,.0f} MB are free",
        hint=f"make room at {layout.root}{fewer}",
    )


def _data_bytes(layout: Layout, made: Plan, outside: Path | None) -> int:
    """Of the tokens that are still to be made, at most, and of the source, if it is to be copied."""
    source = outside or layout.path(made.settled.train.data)
    size = source.stat().st_size if source.is_file() else 0
    has_tokens = tokens.read_manifest(token_file_of(layout, made)) is not None
    return (0 if has_tokens else TOKEN_BYTES * size) + (size if outside else 0)


def checkpoint_bytes(model: ModelConfig) -> int:
    """About the size of a checkpoint's file."""
    width = model.n_embd
    tables = (model.vocab_size * (1 if model.tied else 2) + model.n_positions) * width
    return FLOAT_BYTES * (tables + model.n_layer * (12 * width + 13) * width)


def data_named(settled: Settled) -> str:
    """The data's name; raises UsageError where none was given."""
    if not settled.train.data:
        raise UsageError("no data was named to train on", hint="--data FILE")
    return settled.train.data


def token_file_of(layout: Layout, made: Plan) -> Path:
    return layout.token_file(made.data_name, made.data_digest, made.settled.train.encoding)


def _digest(layout: Layout, settled: Settled, parent: Checkpoint | None, source: Path) -> str:
    manifest = parent.manifest if parent is not None else None
    if manifest is not None and manifest.data_digest is not None and not source.exists():
        kept = layout.token_file(manifest.data_name, manifest.data_digest, settled.train.encoding)
        if settled.train.data == manifest.settled.train.data and tokens.read_manifest(kept):
            return manifest.data_digest
    return tokens.digest_of(source)


def _check_data(layout: Layout, made: Plan, source: Path) -> None:
    """Refuse early what the encoder or the trainer would refuse: no text, too short, no encoding."""
    train = made.settled.train
    done = tokens.read_manifest(token_file_of(layout, made))
    if done is None:
        tokens.check_beginning(source)
        if train.encoding != BYTES and not encoding.file(layout).is_file():
            raise NotFound(f"the encoding {train.encoding} is not in {layout.encodings}", hint="gptjobs data encoding")
    count = done.token_count if done else source.stat().st_size
    context = max(train.block_size, train.evaluated_at)
    needed = HELD_OUT_PART * (context + 1)
    if count < needed:
        raise Refused(
            f"the data {train.data} is too short: {count:,} {'tokens' if done else 'bytes'}; block size "
            f"{context} needs {needed:,}, as a tenth is held out for validation",
            hint="more data, or a smaller --block-size",
        )
