"""The resume contract: what continues, what changes and what resets, said before anything is queued."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Plan

# they follow from the others, which the contract shows
_DERIVED = ("decay_steps", "min_learning_rate", "schedule_start", "steps", "grow_positions")


@dataclass(frozen=True, kw_only=True)
class Change:
    name: str
    before: Any
    after: Any
    origin: str


@dataclass(frozen=True, kw_only=True)
class Contract:
    """`rate_before` and `rate_after`: the learning rate of the first update, had nothing been said and as it
    will be."""

    parent: str
    step: int
    end_step: int
    continues: tuple[str, ...]
    changes: tuple[Change, ...]
    resets: tuple[str, ...]
    rate_before: float
    rate_after: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def contract(plan: Plan, parent: Checkpoint) -> Contract:
    manifest, settled = parent.manifest, plan.settled
    old, new = manifest.settled.train, settled.train
    changes = _changes(asdict(manifest.settled.model), asdict(settled.model), settled.origins)
    changes += _changes(asdict(old), asdict(new), settled.origins)
    continues = [f"weights of step {manifest.step}, {_losses(parent)}", "the optimizer's moments"]
    continues.append(f"steps: {settled.start_step} → {settled.end_step}, {manifest.tokens:,} tokens so far")
    resets = []
    if manifest.data_digest != plan.data_digest:
        resets.append("the place in the data: other data, from its first window")
    elif not manifest.goes_on_in_order(plan):
        order = f"seed {new.seed} has" if old.seed != new.seed else f"windows of {new.block_size} tokens have"
        resets.append(f"the place in the data: {order} another order, from its first one")
    else:
        continues.append(f"the place in the data, after {manifest.cursor.windows:,} windows")
    if old.schedule_start != new.schedule_start or old.schedule != new.schedule:
        resets.append(f"the schedule: {schedule_in_words(plan)}")
    else:
        continues.append(f"the schedule: {schedule_in_words(plan)}")
    return Contract(
        parent=parent.name,
        step=settled.start_step,
        end_step=settled.end_step,
        continues=tuple(continues),
        changes=tuple(changes),
        resets=tuple(resets),
        rate_before=old.learning_rate_at(settled.start_step),
        rate_after=new.learning_rate_at(settled.start_step),
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], origins: Mapping[str, str]) -> list[Change]:
    return [
        Change(name=name, before=old[name], after=value, origin=origins[name])
        for name, value in new.items()
        if name not in _DERIVED and old[name] != value
    ]


def _losses(parent: Checkpoint) -> str:
    losses = parent.manifest.losses
    if losses.val_loss is None:
        return "no validation loss"
    return f"validation loss {losses.val_loss:.4f} at context {losses.eval_context}"


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
    lines = [f"resume {made.parent}", f"       step {made.step} → {made.end_step}", "CONTINUES"]
    lines += [f"  {each}" for each in made.continues]
    if made.changes:
        lines.append("CHANGES")
        width = max(len(each.name) for each in made.changes)
        lines += [
            f"  {each.name:<{width}}  {_value(each.before)} → {_value(each.after)}  ({each.origin})"
            for each in made.changes
        ]
    if made.resets:
        lines.append("RESETS")
        lines += [f"  {each}" for each in made.resets]
    lines.append(f"LEARNING RATE of the first update: {made.rate_before:.3g} before, {made.rate_after:.3g} after")
    return "\n".join(lines)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
