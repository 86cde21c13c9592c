"""The sweep: a search over hyperparameters, and its trials, each a job whose overrides the sweep chose.

A sweep has no process. Its request, each trial's sample and the trials' jobs lie in the storage root, and what is next
follows from them: see trials.py for what became of the trials, study.py for the choice of samples.
"""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from gptjobs import __version__
from gptjobs.config import (
    DEFAULT_SEED,
    HYPERPARAMETERS,
    OF_TRIAL,
    PRESET,
    Given,
    Overrides,
    Settled,
    known,
    option,
    out_of_bounds,
    settle,
)
from gptjobs.errors import GptjobsError, Refused, UsageError
from gptjobs.job import (
    ANY,
    DEFAULT_PRIORITY,
    DEVICES,
    HIGHEST_PRIORITY,
    JobSpec,
    is_override,
    is_time,
    masked_from_record,
    overrides_from_record,
    overrides_to_record,
    plain,
)
from gptjobs.layout import is_digest, is_name, job_id_of_key

SCHEMA = 1

GRID, RANDOM, TPE, CMAES = "grid", "random", "tpe", "cmaes"
SAMPLERS = (GRID, RANDOM, TPE, CMAES)
NONE, MEDIAN, ASHA, HYPERBAND = "none", "median", "asha", "hyperband"
PRUNERS = (NONE, MEDIAN, ASHA, HYPERBAND)
DIAGNOSE = "diagnose"
MANY_POINTS = 10_000
"""of a grid, from which on it is asked whether all are meant"""
UNITS = 9
"""parts of a trial, after which a pruner judges it by the evaluation there"""
UNCHANGED = "unchanged"
"""the control, in words"""
LONGEST_NAME = 50
"""characters: a trial's name adds its number"""
_NEVER_SEARCHED = {
    "vocab_size": "it follows from the encoding",
    "data": "losses on different data do not compare",
    "encoding": "losses in different tokens do not compare",
    "eval_context": "losses at different contexts do not compare",
    "eval_tokens": "losses on different windows do not compare",
    "eval_interval": "a pruner compares trials at the same tokens",
    "eval_start": "a pruner compares trials at the same tokens",
    "rewarm_start": "it follows from --optimizer",
    "rewarm_steps": "it follows from --optimizer",
    "steps": "trials compare at equal tokens",
}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A hyperparameter that is searched: among `choices`, or from `low` to `high`, evenly by its logarithm if `log`."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return type(HYPERPARAMETERS[self.name].default) is int

    @property
    def least(self) -> Any:
        return min(self.choices) if self.choices else self.low

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={','.join(map(_in_words, self.choices))}"
        return f"{self.name}={_in_words(self.low)}:{_in_words(self.high)}{':log' * self.log}"


def grid(text: str) -> Dimension:
    """The dimension that `--grid name=a,b,c` means; raises UsageError for what means none."""
    name, words = _named(text, "--grid", "learning_rate=1e-5,5e-5")
    values = tuple(dict.fromkeys(_value(name, each, "--grid") for each in words.split(",") if each.strip()))
    if not values:
        raise UsageError(f"--grid {text}: there is no value to try", hint=f"--grid {name}=a,b,c")
    return Dimension(name=name, choices=values)


def span(text: str) -> Dimension:
    """The dimension that `--range name=low:high[:log]` means; raises UsageError for what means none."""
    name, words = _named(text, "--range", "learning_rate=1e-5:1e-3:log")
    parts = words.split(":")
    if len(parts) not in (2, 3) or parts[2:] not in ([], ["log"]):
        raise UsageError(f"--range {text} is no range", hint=f"--range {name}=low:high, or low:high:log")
    low, high = (_value(name, each, "--range") for each in parts[:2])
    if isinstance(low, str | bool):
        raise UsageError(f"--range {text}: {name} is no number", hint=f"--grid {name}=a,b,c")
    if low >= high:
        raise UsageError(f"--range {text}: {low:g} is not below {high:g}", hint=f"--range {name}=low:high")
    made = Dimension(name=name, low=low, high=high, log=len(parts) == 3)
    if made.log and low <= 0:
        raise UsageError(
            f"--range {text}: a logarithm has no value at {low:g}",
            hint="a lowest value above 0, or a range without :log",
        )
    return made


def _named(text: str, said: str, example: str) -> tuple[str, str]:
    name, equals, words = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals:
        raise UsageError(f"{said} {text} names no hyperparameter and its values", hint=f"{said} {example}")
    if name not in HYPERPARAMETERS:
        close = get_close_matches(name, HYPERPARAMETERS, n=1)
        hint = f"did you mean {close[0]}?" if close else "names as in the options of gptjobs submit train --help"
        raise UsageError(f"{said} {text}: there is no hyperparameter '{name}'", hint=hint)
    if why := _NEVER_SEARCHED.get(name):
        raise UsageError(f"{said} {text}: {name} cannot be searched: {why}", hint="leave it out")
    return name, words


def _value(name: str, text: str, said: str) -> Any:
    """A value of that hyperparameter; raises UsageError for one that it cannot have."""
    each, word = HYPERPARAMETERS[name], text.strip()
    value: Any = word
    try:
        if isinstance(each.default, bool):
            value = {"true": True, "false": False}.get(word.lower(), word)
        elif isinstance(each.default, int | float):
            value = type(each.default)(word)
    except ValueError:
        pass  # which is said below
    if problem := out_of_bounds(each, value):
        raise UsageError(f"{said} {name}: {problem}", hint="gptjobs submit train --help shows what it can be")
    return value


def params_in_words(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_in_words(value)}" for name, value in params.items()) or UNCHANGED


def _in_words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A sample, written down before it trains. `attrs` are what the sampler wants to know of it later."""

    number: int
    params: Mapping[str, Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return params_in_words(self.params)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Trial":
        return cls(**known(cls.__dataclass_fields__, record))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked for. `overrides` are those of every trial."""

    id: str
    name: str | None = None
    parent: str | None = None
    """the checkpoint that every trial starts from, relative to the root; None from scratch"""
    overrides: Overrides = field(default_factory=dict)
    dimensions: Sequence[Dimension] = ()
    changes: Overrides = field(default_factory=dict)
    """of the preset diagnose: tried one at a time, and together"""
    sampler: str = GRID
    pruner: str = NONE
    trials: int
    """how many there are to be"""
    parallel: int | None = None
    """how many go on at once; None for as many as there are slots"""
    budget_tokens: int | None = None
    """that each trial trains on; None for --steps of the unchanged batch and block"""
    seed: int = DEFAULT_SEED
    """of the sampler"""
    data_digest: str | None = None
    """SHA-256 of the source, where the client had it"""
    device: str = ANY
    priority: int = DEFAULT_PRIORITY
    notify: tuple[str, ...] = ()
    """where its end is told, masked"""
    submitted_at: float
    """seconds since the epoch, for people"""
    version: str = field(default=__version__, compare=False)

    @property
    def called(self) -> str:
        return self.name or self.id

    @property
    def kind(self) -> str:
        """Of its trials' jobs."""
        return "train" if self.parent is None else "resume"

    def to_dict(self) -> dict[str, Any]:
        record = {"schema": SCHEMA, **asdict(self), "notify": list(self.notify)}
        return record | {each: overrides_to_record(getattr(self, each)) for each in ("overrides", "changes")}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Sweep":
        """Raises Refused for what no client of this version asks: whoever reaches Redis can write a record."""
        if record["schema"] > SCHEMA:
            raise Refused(
                f"sweep {plain(str(record['id']))} was submitted by gptjobs {plain(str(record.get('version')))}; "
                f"{__version__} cannot read it",
                hint="update gptjobs on this host",
            )
        values = known(cls.__dataclass_fields__, record)
        for each in ("overrides", "changes"):
            values[each] = overrides_from_record(record[each])
        values["dimensions"] = tuple(
            Dimension(**{**known(Dimension.__dataclass_fields__, each), "choices": tuple(each["choices"])})
            for each in record["dimensions"]
        )
        values["notify"] = masked_from_record(record)
        return _checked(cls(**values))

    @property
    def has_fixed_points(self) -> bool:
        """Whether all trials are known from the start, so that no sampler is asked."""
        return bool(self.changes) or self.sampler == GRID

    def point(self, number: int) -> dict[str, Any]:
        """The sample of a trial, of a sweep whose points are fixed: grids in the order of their options, the last
        hyperparameter changing first; with a pruner, in an order drawn by chance."""
        params: dict[str, Any] = {}
        if self.pruner != NONE:
            number = self._shuffled[number]
        for each in reversed(self.dimensions):
            number, place = divmod(number, len(each.choices))
            params = {each.name: each.choices[place], **params}
        if self.changes:
            params = {name: self.changes[name].value for name in arms(self.changes)[number]} | params
        return params

    @cached_property
    def _shuffled(self) -> list[int]:
        """By chance, but the same each time: a pruner compares a trial with those before it, so it would stop none of
        a grid in which each is better than the last."""
        order = list(range(points(self.dimensions, self.changes)))
        random.Random(self.seed).shuffle(order)
        return order

    @property
    def common_context(self) -> int | None:
        """The context of every trial's evaluations: the smallest block size of any; None where all have the same."""
        tried = [each.least for each in self.dimensions if each.name == "block_size"]
        tried += [self.changes["block_size"].value] if "block_size" in self.changes else []
        return int(min(tried)) if tried else None

    def settled(self, parent: Settled | None, parent_step: int, params: Mapping[str, Any] | None = None) -> Settled:
        """Every value of a trial with these, or of one that changes nothing; what is said of trials is not in it.
        Raises UsageError or Refused for one that cannot be."""
        return settle(self._with(params or {}), parent=parent, parent_step=parent_step)

    def _with(self, params: Mapping[str, Any]) -> dict[str, Given]:
        return {**self.overrides, **{name: Given(value, f"sweep {self.called}") for name, value in params.items()}}

    def job(self, trial: Trial, parent: Settled | None, parent_step: int) -> JobSpec:
        """The first job of a trial: it trains on as many tokens as every other, and is evaluated at the common
        context. One that cannot be is refused, in words, by the worker that takes it."""
        overrides = self._with(trial.params)
        base = self.settled(parent, parent_step)
        tokens = self.tokens(base)
        context = self.common_context
        if context is not None:
            context = min(context, base.train.block_size)
            overrides.setdefault("eval_context", Given(context, OF_TRIAL))
        try:
            train = self.settled(parent, parent_step, trial.params).train
        except GptjobsError:
            train = base.train
        steps = math.ceil(tokens / (train.batch_size * train.block_size))
        overrides["steps"] = Given(steps, f"{tokens:,} tokens a trial")
        if self.pruner != NONE:
            overrides.setdefault("eval_interval", Given(math.ceil(steps / UNITS), OF_TRIAL))
            overrides["eval_start"] = Given(parent_step, OF_TRIAL)
        return self.part(trial, 0, kind=self.kind, parent=self.parent, overrides=overrides)

    def part(self, trial: Trial, part: int, **values: Any) -> JobSpec:
        """A job of a trial: the first, or one that goes on where a pruner had stopped it."""
        name = f"{self.called}-{trial.number}"
        return JobSpec(
            id=job_of_trial(self.id, trial.number, part),
            name=f"{name}.{part}" if part else name,
            sweep=self.id,
            trial=trial.number,
            device=self.device,
            priority=self.priority,
            submitted_at=time.time(),
            data_digest=self.data_digest,
            **values,
        )

    def tokens(self, base: Settled) -> int:
        """That each trial trains on; `base` is what a trial without changes has."""
        return self.budget_tokens or base.train.steps * base.train.batch_size * base.train.block_size


def _checked(sweep: Sweep) -> Sweep:
    """The request; raises Refused where a field is not what a client of this version writes there."""
    counts = (sweep.trials, sweep.parallel or 1, sweep.budget_tokens or 1)
    is_right = {
        "id": isinstance(sweep.id, str) and is_name(sweep.id),
        "name": sweep.name is None or (isinstance(sweep.name, str) and is_name(sweep.name)),
        "parent": sweep.parent is None or isinstance(sweep.parent, str),
        "overrides": all(
            is_override(name, given.value) for each in (sweep.overrides, sweep.changes) for name, given in each.items()
        ),
        "data_digest": sweep.data_digest is None
        or (isinstance(sweep.data_digest, str) and is_digest(sweep.data_digest)),
        "device": sweep.device in (ANY, *DEVICES),
        "priority": type(sweep.priority) is int and 0 <= sweep.priority <= HIGHEST_PRIORITY,
        "dimensions": all(_can_be_searched(each) for each in sweep.dimensions),
        "sampler": sweep.sampler in SAMPLERS and sweep.pruner in PRUNERS,
        "trials": all(type(each) is int and each > 0 for each in counts) and type(sweep.seed) is int,
        "submitted_at": is_time(sweep.submitted_at),
    }
    wrong = ", ".join(name for name, right in is_right.items() if not right)
    if wrong:
        raise Refused(f"sweep {plain(repr(sweep.id)):.80} asks for what gptjobs here does not know: {wrong}")
    return sweep


def _can_be_searched(each: Dimension) -> bool:
    if each.name not in HYPERPARAMETERS or each.name in _NEVER_SEARCHED:
        return False
    numbers = isinstance(each.low, int | float) and isinstance(each.high, int | float)
    values = each.choices or ((each.low, each.high) if numbers and each.low < each.high else (None,))
    return all(out_of_bounds(HYPERPARAMETERS[each.name], value) is None for value in values)


def job_of_trial(sweep: str, number: int, part: int) -> str:
    """The id of a trial's job: the same wherever, and however often, it is submitted."""
    return job_id_of_key(f"sweep {sweep} trial {number} part {part}")


def arms(changes: Overrides) -> list[tuple[str, ...]]:
    """What the preset diagnose changes in its trials: nothing, each change alone, and all together."""
    alone = [(name,) for name in changes]
    return [(), *alone, *([tuple(changes)] if len(changes) > 1 else [])]


def points(dimensions: Sequence[Dimension], changes: Overrides) -> int:
    """How many a grid has."""
    return math.prod(len(each.choices) for each in dimensions) * (len(arms(changes)) if changes else 1)


def check(sweep: Sweep) -> None:
    """Raise UsageError for a search that means nothing."""
    names = [each.name for each in sweep.dimensions]
    if not names and not sweep.changes:
        raise UsageError("there is nothing to search", hint="--grid learning_rate=1e-5,5e-5, or --range, or --preset")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is searched twice", hint="one --grid or --range for each")
        if name in sweep.overrides or name in sweep.changes:
            raise UsageError(f"{option(name)} was given, and {name} is searched too", hint="leave one of them out")
    ranges = [each.name for each in sweep.dimensions if not each.choices]
    if ranges and sweep.has_fixed_points:
        what = f"the preset {DIAGNOSE}" if sweep.changes else "a grid"
        raise UsageError(f"{what} has no --range ({', '.join(ranges)})", hint="--grid, or --sampler tpe")
    if sweep.sampler == CMAES and len(ranges) < 2:
        raise UsageError("CMA-ES searches two ranges or more", hint="--range twice, or --sampler tpe")
    _check_preset(sweep)


def _check_preset(sweep: Sweep) -> None:
    if PRESET in sweep.changes:
        raise UsageError("--model is no change that a checkpoint can take", hint="leave it out")
    others = [each.name for each in sweep.dimensions if each.name != "seed"]
    if sweep.changes and others:
        raise UsageError(
            f"--preset {DIAGNOSE} searches nothing else ({', '.join(others)})", hint="the changes, and --seeds"
        )
    if sweep.changes and sweep.parent is None:
        raise UsageError(f"--preset {DIAGNOSE} compares changes from a checkpoint", hint="--from JOB@best")
