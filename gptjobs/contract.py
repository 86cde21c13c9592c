"""The resume contract: what continues, what changes and what resets, said before anything is queued."""

from dataclasses import asdict, dataclass
from typing import Any

from gptjobs.checkpoint import Checkpoint, Manifest
from gptjobs.config import KEEP, RESTART, VOCABULARY, Plan, Settled
from gptjobs.foreign import OWN

_MAIN = ("batch_size", "block_size", "learning_rate", "weight_decay", "dropout")
# they follow from the others, which the contract shows, or are among what continues and resets
_DERIVED = (
    "decay_steps", "min_learning_rate", "schedule_start", "steps", "grow_positions", "optimizer", "rewarm_start",
    "rewarm_steps", "data_cursor", "gpus", "shard", "eval_start", "restart_on_growth",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Change:
    name: str
    before: Any
    """None where a checkpoint of another program does not say"""
    after: Any
    origin: str


@dataclass(frozen=True, kw_only=True)
class Contract:
    """`rate_before` and `rate_after`: the learning rate of the first update, had nothing been said and as it
    will be."""

    parent: str
    step: int
    end_step: int
    reads: tuple[str, ...]
    """what a checkpoint of another program was taken for"""
    continues: tuple[str, ...]
    changes: tuple[Change, ...]
    resets: tuple[str, ...]
    rate_before: float | None
    rate_after: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def contract(plan: Plan, parent: Checkpoint) -> Contract:
    manifest, settled = parent.manifest, plan.settled
    old, new = manifest.settled.train, settled.train
    continues = [f"weights of step {manifest.step}, {_losses(parent)}"]
    resets = []
    if why := _against_moments(manifest, plan):
        resets.append(f"the optimizer's moments: {why}")
    else:
        continues.append("the optimizer's moments")
    continues.append(f"steps: {settled.start_step} → {settled.end_step}, {manifest.tokens:,} tokens so far")
    if why := _against_place(manifest, plan):
        resets.append(f"the place in the data: {why}")
    else:
        continues.append(f"the place in the data, after {manifest.cursor.windows:,} windows")
    goes_on = (old.schedule_start, old.schedule) == (new.schedule_start, new.schedule)
    (continues if goes_on else resets).append(f"the schedule: {schedule_in_words(plan)}")
    risen = new.rewarm_start + new.rewarm_steps
    if settled.start_step < risen:
        rises = f"the warm-up: from step {new.rewarm_start} to {risen} the rate rises to the schedule's"
        goes_on = (old.rewarm_start, old.rewarm_steps) == (new.rewarm_start, new.rewarm_steps)
        (continues if goes_on else resets).append(rises)
    return Contract(
        parent=parent.name,
        step=settled.start_step,
        end_step=settled.end_step,
        reads=tuple(reads(manifest)) if manifest.layout != OWN else (),
        continues=tuple(continues),
        changes=tuple(changes(manifest.settled, settled)),
        resets=tuple(resets),
        rate_before=old.learning_rate_at(settled.start_step) if manifest.settled.knows("learning_rate") else None,
        rate_after=new.learning_rate_at(settled.start_step),
    )


def _against_moments(manifest: Manifest, plan: Plan) -> str | None:
    """Why the optimizer begins without the checkpoint's moments, or None."""
    settled = plan.settled
    if not manifest.has_moments:
        return "the file has none that fit"
    if settled.train.optimizer != KEEP:
        return f"{settled.train.optimizer} was asked for ({settled.origins['optimizer']})"
    return None


def _against_place(manifest: Manifest, plan: Plan) -> str | None:
    """Why the data is begun anew, or None."""
    old, settled = manifest.settled.train, plan.settled
    new = settled.train
    if manifest.data_digest is None:
        return "the file does not tell it; from the data's first window"
    if manifest.data_digest != plan.data_digest:
        return "other data, from its first window"
    if not manifest.goes_on_in_order(plan):
        order = f"windows of {new.block_size} tokens have"
        if old.data_order != new.data_order:
            order = f"--data-order {new.data_order} is"
        elif old.seed != new.seed:
            order = f"seed {new.seed} has"
        return f"{order} another order, from its first one"
    if new.data_cursor == RESTART:
        return f"{new.data_cursor} was asked for ({settled.origins['data_cursor']}); from the data's first window"
    return None


def changes(old: Settled, new: Settled) -> list[Change]:
    """What the job has otherwise than the checkpoint; of what the checkpoint does not say, what matters most."""
    before, after = (asdict(each.model) | asdict(each.train) for each in (old, new))
    found = []
    for name, value in after.items():
        if name in _DERIVED:
            continue
        origin = new.origins[name]
        if not old.knows(name) and (name in _MAIN or origin != "default"):
            found.append(Change(name=name, before=None, after=value, origin=origin))
        elif old.knows(name) and before[name] != value:
            found.append(Change(name=name, before=before[name], after=value, origin=origin))
    return found


def _losses(parent: Checkpoint) -> str:
    losses = parent.manifest.losses
    if losses.val_loss is None:
        return "no validation loss"
    context = "" if losses.eval_context is None else f" at context {losses.eval_context}"
    return f"validation loss {losses.val_loss:.4f}{context}"


def reads(manifest: Manifest) -> list[str]:
    """What a checkpoint of another program was taken for, and by what sign."""
    model, encoding = manifest.settled.model, manifest.settled.train.encoding
    facts = [
        ("step", f"step {manifest.step}"),
        ("n_head", f"{model.n_layer} layers of width {model.n_embd}, {model.n_head} heads"),
        ("activation", "exact GELU" if model.activation == "gelu" else "GELU by its tanh approximation"),
        ("encoding", f"encoding {encoding}"),
    ]
    lines = [manifest.layout] + [f"{words}  ({manifest.sources[fact]})" for fact, words in facts]
    spare = model.vocab_size - VOCABULARY[encoding]
    kept = ["no biases"] * (not model.bias) + ["a head of its own"] * (not model.tied)
    kept += [f"{spare} rows beyond the vocabulary"] * (spare > 0)
    return lines + (["kept: " + ", ".join(kept)] if kept else [])


def schedule_in_words(plan: Plan) -> str:
    train = plan.settled.train
    warmup = f" after {train.warmup_steps} steps of warm-up" if train.warmup_steps else ""
    if train.schedule == "constant":
        return f"constant {train.learning_rate:g}{warmup}"
    end = train.schedule_start + train.decay_steps
    return (
        f"{train.schedule} from step {train.schedule_start}{warmup}, "
        f"{train.learning_rate:g} → {train.min_learning_rate:g} at step {end}"
    )


def in_words(made: Contract) -> str:
    """For a terminal of 80 columns or more."""
    lines = [f"resume {made.parent}", f"       step {made.step} → {made.end_step}"]
    if made.reads:
        lines += ["READS", *(f"  {each}" for each in made.reads)]
    lines.append("CONTINUES")
    lines += [f"  {each}" for each in made.continues]
    if made.changes:
        lines.append("CHANGES")
        width = max(len(each.name) for each in made.changes)
        lines += [
            f"  {each.name:<{width}}  {value_in_words(each.before)} → {value_in_words(each.after)}  ({each.origin})"
            for each in made.changes
        ]
    if made.resets:
        lines.append("RESETS")
        lines += [f"  {each}" for each in made.resets]
    before = "unknown" if made.rate_before is None else f"{made.rate_before:.3g}"
    lines.append(f"LEARNING RATE of the first update: {before} before, {made.rate_after:.3g} after")
    return "\n".join(lines)


def value_in_words(value: Any) -> str:
    """As people write it: 6e-05, not 5.9999999999999995e-05."""
    if value is None:
        return "not said"
    return f"{value:g}" if isinstance(value, float) else str(value)
