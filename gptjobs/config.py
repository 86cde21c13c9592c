"""Every hyperparameter, once: its default, unit, bounds and help; and the one function that settles them.

Options of the command line, validation, manifests, the resume contract and the docs are made from the
fields here: a new hyperparameter is one line.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from gptjobs import ranges
from gptjobs.errors import Refused, UsageError

SCHEMA = 1

BYTES = "bytes"
VOCABULARY = {"r50k_base": 50257, "gpt2": 50257, BYTES: 256}
SCHEDULES = ("constant", "cosine", "linear")
HELD_OUT_PART = 10
"""One in so many tokens, the data's tail, is held out for validation."""
PRECISIONS = ("auto", "float32", "bfloat16")
COMPILES = ("auto", "on", "off")
DEFAULT_SEED = 1337
MOST_GPUS = 16
"""of a host, for one job"""
ACTIVATIONS = ("gelu_tanh", "gelu")
KEEP, RESET, REWARM, RESTART = "keep", "reset", "rewarm", "restart"
SHUFFLED, SEQUENTIAL = "shuffled", "sequential"
ROLLBACK, STOP, WARN = "rollback", "stop", "warn"
NOTE, SKIP = "note", "skip"
REWARM_STEPS = 100
"""of a rewarm that is not told how many"""
NOT_SAID = "the file does not say"
"""The origin of a value in a checkpoint of another program that stands for one that nobody knows."""


def _hyper(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    shown: str | None = None,
    fault: Callable[[Any], str | None] = lambda value: None,
) -> Any:
    """A hyperparameter; `low` and `high` belong to the range, `above` does not; `shown` is said of a default
    that follows from other values; `fault` says what else is wrong with a value."""
    return field(
        default=default,
        metadata={
            "help": help,
            "low": low,
            "high": high,
            "above": above,
            "choices": choices,
            "metavar": metavar,
            "shown": shown,
            "fault": fault,
        },
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a GPT-2. It belongs to the weights: a resume takes the checkpoint's."""

    n_layer: int = _hyper(12, "Transformer blocks.", low=1, high=1024)
    n_head: int = _hyper(12, "Attention heads a block; n_embd must be a multiple.", low=1, high=1024)
    n_embd: int = _hyper(768, "Width of the residual stream.", low=1, high=65536)
    n_positions: int = _hyper(1024, "Rows of the position table: the longest block.", low=1, high=1 << 20)
    vocab_size: int = _hyper(50257, "Rows of the token table; follows from the encoding.", low=1, high=65536)
    activation: str = _hyper("gelu_tanh", "GELU by its tanh approximation, or exact.", choices=ACTIVATIONS)
    bias: bool = _hyper(True, "Biases in linear layers and norms.")
    tied: bool = _hyper(True, "One table for tokens that go in and that come out.")


PRESETS: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "nano": {"n_layer": 4, "n_head": 4, "n_embd": 128},
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Steps are optimizer updates; intervals are in steps."""

    data: str = _hyper("", "Text to train on, a file.", metavar="FILE")
    encoding: str = _hyper("r50k_base", "How text becomes tokens.", choices=tuple(VOCABULARY))
    steps: int = _hyper(2000, "Optimizer updates to make: more steps, not the last step.", low=1, high=10**9)
    batch_size: int = _hyper(32, "Windows of text in an update.", low=1, high=1 << 20)
    micro_batch: int = _hyper(
        0, "Windows on the device at once; the gradients of an update add up. 0: all.", low=0, high=1 << 20
    )
    block_size: int = _hyper(128, "Context length: tokens in a window.", low=1, high=1 << 20)
    learning_rate: float = _hyper(6e-4, "Peak learning rate.", above=0.0, high=10.0)
    schedule: str = _hyper("cosine", "Shape of the learning rate after the warm-up.", choices=SCHEDULES)
    warmup_steps: int = _hyper(100, "Steps over which the learning rate rises linearly.", low=0, high=10**9)
    decay_steps: int = _hyper(
        0, "Steps from the schedule's start to its lowest rate. 0: to the job's end.", low=0, high=10**9
    )
    min_learning_rate: float = _hyper(
        0.0, "The rate that cosine and linear end at.", low=0.0, high=10.0, shown="a tenth of the peak"
    )
    schedule_start: int = _hyper(0, "The step that the schedule counts from.", low=0, high=10**9)
    weight_decay: float = _hyper(0.1, "AdamW's decay, on matrices only.", low=0.0, high=10.0)
    beta1: float = _hyper(0.9, "AdamW's decay of the gradient's mean.", low=0.0, high=0.999999)
    beta2: float = _hyper(0.95, "AdamW's decay of the gradient's square.", low=0.0, high=0.999999)
    epsilon: float = _hyper(1e-8, "AdamW's term against division by zero.", above=0.0, high=1.0)
    grad_clip: float = _hyper(1.0, "Largest gradient norm; larger ones are scaled. 0: off.", low=0.0, high=1e6)
    dropout: float = _hyper(0.0, "Part of the activations dropped in training.", low=0.0, high=0.95)
    eval_interval: int = _hyper(500, "Steps between evaluations.", low=1, high=10**9)
    eval_start: int = _hyper(0, "The step that evaluations count from.", low=0, high=10**9)
    eval_tokens: int = _hyper(
        32768, "Held-out tokens that an evaluation reads, the same every time.", low=1, high=10**9
    )
    eval_context: int = _hyper(
        0, "Context length of evaluations: jobs of other block sizes compare at the same. 0: the block size.", low=0,
        high=1 << 20,
    )  # fmt: skip
    checkpoint_interval: int = _hyper(500, "Steps between checkpoints.", low=1, high=10**9)
    log_interval: int = _hyper(10, "Steps between lines of progress.", low=1, high=10**6)
    target_val_loss: float = _hyper(0.0, "Stop early at this validation loss, in nats. 0: off.", low=0.0, high=1e3)
    on_spike: str = _hyper(
        ROLLBACK,
        "When the loss rises and stays up: go back before it and on without the windows it had seen, stop, or tell.",
        choices=(ROLLBACK, STOP, WARN),
    )
    on_outlier: str = _hyper(
        NOTE, "A single step's loss that is far off: tell, or leave its update out as well.", choices=(NOTE, SKIP)
    )
    max_rollbacks: int = _hyper(2, "Times to go back before a job has diverged.", low=0, high=1000)
    restart_on_growth: str = _hyper(
        "auto",
        "Restart the trainer from a checkpoint when its memory grows without end; auto: on Apple's GPUs.",
        choices=("auto", "on", "off"),
    )
    patience: int = _hyper(0, "Stop early after so many evaluations without a better one. 0: off.", low=0)
    precision: str = _hyper("auto", "Arithmetic of matrix products.", choices=PRECISIONS)
    compile: str = _hyper(
        "auto", "Compile the model's blocks: where a probe finds that it pays, always, or never.", choices=COMPILES
    )
    exact: bool = _hyper(
        False, "Only algorithms that give the same bits twice: on CUDA slower; never TF32, compiled or probed."
    )
    recompute: bool = _hyper(False, "Compute blocks again in the backward pass: less memory, a third more to compute.")
    optimizer: str = _hyper(
        KEEP,
        "AdamW's moments: kept; reset; or reset with the learning rate rising from nought to its schedule once more, "
        f"over --warmup-steps ({REWARM_STEPS} if not given).",
        choices=(KEEP, RESET, REWARM),
    )
    rewarm_start: int = _hyper(0, "The step that the last rewarm began at.", low=0, high=10**9)
    rewarm_steps: int = _hyper(0, "Steps that it takes. 0: there was none.", low=0, high=10**9)
    data_cursor: str = _hyper(
        KEEP, "The place in the data: kept, or restart from the first window.", choices=(KEEP, RESTART)
    )
    data_order: str = _hyper(
        SHUFFLED, "Windows by chance, anew each epoch, or one after the other.", choices=(SHUFFLED, SEQUENTIAL)
    )
    skip_tokens: str = _hyper(
        "", "Ranges of the data's tokens not to train on: 2.0M:2.5M, several with commas.", metavar="FROM:TO",
        fault=ranges.fault,
    )  # fmt: skip
    gpus: int = _hyper(1, "Devices of one host that train together, each a part of every batch.", low=1, high=MOST_GPUS)
    shard: bool = _hyper(False, "Split weights and moments over --gpus, for a model that does not fit on each.")
    grow_positions: bool = _hyper(False, "Let a larger block than the position table add rows to it.")
    seed: int = _hyper(
        DEFAULT_SEED,
        "Of the first weights, the order of data, dropout, and a sweep's samples.",
        low=0,
        high=2**31 - 1,
    )

    @property
    def windows_at_once(self) -> int:
        """That are asked for on each device; fewer where memory runs out."""
        part = -(-self.batch_size // self.gpus)
        return min(self.micro_batch or part, part)

    @property
    def evaluated_at(self) -> int:
        """The context length of evaluations."""
        return self.eval_context or self.block_size

    def restarts_on_growth(self, kind_of_device: str) -> bool:
        return self.restart_on_growth == "on" or (self.restart_on_growth == "auto" and kind_of_device == "mps")

    def learning_rate_at(self, step: int) -> float:
        """The rate of the update that makes step `step` + 1: the schedule's, less while a rewarm goes on."""
        since = step - self.rewarm_start
        part = (since + 1) / self.rewarm_steps if 0 <= since < self.rewarm_steps else 1.0
        return part * self._scheduled_rate_at(step)

    def _scheduled_rate_at(self, step: int) -> float:
        """Linear warm-up, then the schedule (cosine as in SGDR without restarts, Loshchilov & Hutter 2017)."""
        since = max(0, step - self.schedule_start)
        if since < self.warmup_steps:
            return self.learning_rate * (since + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = min(1.0, (since - self.warmup_steps) / max(1, self.decay_steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * left


_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_SCHEDULE_FIELDS = ("schedule", "warmup_steps", "decay_steps", "min_learning_rate", "schedule_start")
MODEL_FIELDS = {each.name: each for each in fields(ModelConfig)}
TRAIN_FIELDS = {each.name: each for each in fields(TrainConfig)}
HYPERPARAMETERS = MODEL_FIELDS | TRAIN_FIELDS
OF_RESUME = ("optimizer", "data_cursor")
"""How one resume begins: a job from scratch has no such choice, and a later resume does not inherit it."""
_OF_ONE_JOB = ("grow_positions", "gpus", "shard", "restart_on_growth", *OF_RESUME)
"""No resume inherits them: said for one job, or of where it trains."""
OF_TRIAL = "so that trials of a sweep compare"
"""The origin of how a trial is evaluated; a resume of one does not inherit it."""
PRESET = "model"  # the one override that is no field: it stands for several of ModelConfig


class Given(NamedTuple):
    """A value that a user typed or a sweep sampled, and where it came from."""

    value: Any
    origin: str


Overrides = Mapping[str, Given]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Every value that a job trains with, and the origin of each."""

    model: ModelConfig
    train: TrainConfig
    start_step: int
    origins: Mapping[str, str]

    @property
    def end_step(self) -> int:
        return self.start_step + self.train.steps

    def knows(self, name: str) -> bool:
        """Whether the value is one that somebody set, not only what stands for an unknown one."""
        return self.origins.get(name) != NOT_SAID

    def evaluates_at(self, step: int) -> bool:
        since = step - self.train.eval_start
        return step in (self.start_step, self.end_step) or since % self.train.eval_interval == 0

    def saves_at(self, step: int) -> bool:
        return step == self.end_step or step % self.train.checkpoint_interval == 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": asdict(self.model),
            "train": asdict(self.train),
            "start_step": self.start_step,
            "end_step": self.end_step,
            "origins": dict(self.origins),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Settled":
        return cls(
            model=ModelConfig(**known(MODEL_FIELDS, record["model"])),
            train=TrainConfig(**known(TRAIN_FIELDS, record["train"])),
            start_step=record["start_step"],
            origins=dict.fromkeys(HYPERPARAMETERS, "default") | record["origins"],
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`config.json`: all that an attempt of a job trains with. It is the same for every attempt."""

    job: str
    kind: str
    """train or resume"""
    settled: Settled
    data_name: str
    """the dataset's name, as file names carry it"""
    data_digest: str
    """SHA-256 of the source"""
    parent: str | None
    """the checkpoint that the job starts from, relative to the root"""

    def to_dict(self) -> dict[str, Any]:
        names = ("job", "kind", "data_name", "data_digest", "parent")
        return {"schema": SCHEMA} | {each: getattr(self, each) for each in names} | self.settled.to_dict()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Plan":
        return cls(**known(cls.__dataclass_fields__, {**record, "settled": Settled.from_dict(record)}))


def known(names: Iterable[str], record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `record` that this version knows: formats may grow fields."""
    return {name: record[name] for name in names if name in record}


def halved(windows: int) -> int:
    """How many windows are tried at once after so many did not fit; 1 stays 1."""
    return (windows + 1) // 2


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def switch(name: str, on: bool) -> str:
    """The option that turns a hyperparameter on or off."""
    return option(name) if on else f"--no-{option(name)[2:]}"


def as_typed(overrides: Overrides) -> list[str]:
    """The options that say these values; a switch that says what is usual anyway is left out."""
    words: list[str] = []
    for name, given in overrides.items():
        if isinstance(given.value, bool):
            words += [] if given.value is HYPERPARAMETERS[name].default else [switch(name, given.value)]
        else:
            words += [option(name), str(given.value)]
    return words


def settle(overrides: Overrides, *, parent: Settled | None = None, parent_step: int = 0) -> Settled:
    """Merge defaults, the checkpoint's values (`parent`, taken at `parent_step`) and the overrides.

    Raises UsageError for a value out of its bounds, Refused for one that the checkpoint cannot take.
    """
    check(overrides)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(name: str, value: Any, origin: str) -> None:
        values[name] = value
        origins[name] = origin

    for name, each in HYPERPARAMETERS.items():
        put(name, each.default, "default")
    if parent is None:
        _refuse_what_is_of_resume(overrides)
        _put_preset(put, overrides)
    else:
        _put_parents(put, overrides, parent)
        _refuse_another_shape(parent, overrides)
        if parent.end_step > parent_step and parent.knows("steps"):
            put("steps", parent.end_step - parent_step, "checkpoint: what was left")
        else:
            put("steps", TRAIN_FIELDS["steps"].default, "default")
        overrides = _put_schedule_of_resume(put, overrides, parent_step)
    for name, given in overrides.items():
        if name in values:
            whole = type(given.value) is int and type(values[name]) is float
            put(name, float(given.value) if whole else given.value, given.origin)
    if origins["min_learning_rate"] == "default":
        put("min_learning_rate", values["learning_rate"] / 10, "a tenth of the peak")
    _check_together(values)
    if parent is None:
        put("vocab_size", VOCABULARY[values["encoding"]], f"encoding {values['encoding']}")
    if values["decay_steps"] == 0:
        end = parent_step + values["steps"]
        put("decay_steps", max(1, end - values["schedule_start"]), "to the job's end")
    _fit_positions(put, values, origins, parent)
    settled = Settled(
        model=ModelConfig(**known(MODEL_FIELDS, values)),
        train=TrainConfig(**known(TRAIN_FIELDS, values)),
        start_step=parent_step,
        origins=origins,
    )
    if settled.train.learning_rate_at(settled.end_step - 1) == 0.0:
        ended = settled.train.schedule_start + settled.train.decay_steps
        raise Refused(
            f"the {settled.train.schedule} schedule ends at step {ended}, the job at {settled.end_step}: between them "
            "the learning rate would be 0",
            hint="--learning-rate for a constant one, --schedule to begin one here, or fewer --steps",
        )
    return settled


def _put_preset(put: Any, overrides: Overrides) -> None:
    preset = overrides.get(PRESET, Given("gpt2", "default"))
    for name, value in PRESETS[preset.value].items():
        put(name, value, f"model {preset.value}")
    if preset.value == "nano":
        put("encoding", BYTES, "model nano")


def _put_parents(put: Any, overrides: Overrides, parent: Settled) -> None:
    """The checkpoint's values, but for what no resume inherits."""
    for name, value in (asdict(parent.model) | asdict(parent.train)).items():
        put(name, value, "checkpoint" if parent.knows(name) else "default")
    for name in [each for each, origin in parent.origins.items() if origin == OF_TRIAL]:
        put(name, TRAIN_FIELDS[name].default, "default")
    for name in _OF_ONE_JOB:
        put(name, TRAIN_FIELDS[name].default, "default")
    if "data" in overrides and overrides["data"].value != parent.train.data:
        put("skip_tokens", "", "other data")


def _put_schedule_of_resume(put: Any, overrides: Overrides, step: int) -> Overrides:
    """A learning rate alone means a constant one; any word about the schedule starts it anew here; neither, and the
    checkpoint's goes on. A rewarm lies over either, and takes the warm-up that is said: the overrides without it
    are returned."""
    rewarms = "optimizer" in overrides and overrides["optimizer"].value == REWARM
    rewarm = overrides.get("warmup_steps", Given(REWARM_STEPS, "rewarm"))
    if rewarms:
        overrides = {name: given for name, given in overrides.items() if name != "warmup_steps"}
    said = [name for name in _SCHEDULE_FIELDS if name in overrides]
    if said or "learning_rate" in overrides:
        why = "the schedule starts anew" if said else "a rate was given, no schedule"
        if "schedule" not in overrides and "learning_rate" in overrides:
            put("schedule", "constant", why)
        put("schedule_start", step, why)
        put("warmup_steps", 0, why)
        put("decay_steps", 0, why)
        put("min_learning_rate", 0.0, "default")
        put("rewarm_steps", 0, why)
    if rewarms:
        put("rewarm_start", step, "rewarm")
        put("rewarm_steps", *rewarm)
    return overrides


def _refuse_what_is_of_resume(overrides: Overrides) -> None:
    for name in OF_RESUME:
        if name in overrides:
            raise UsageError(
                f"{_said_by(name, overrides[name])} says how a resume begins; a job from scratch has nothing to keep",
                hint="leave it out, or go on from a checkpoint: gptjobs submit resume --from JOB@last",
            )


def _refuse_another_shape(parent: Settled, overrides: Overrides) -> None:
    shape = asdict(parent.model)
    for name in (*MODEL_FIELDS, "encoding"):
        given = overrides.get(name)
        own = parent.train.encoding if name == "encoding" else shape[name]
        if given is not None and given.value != own and not {given.value, own} <= {"gpt2", "r50k_base"}:
            raise Refused(
                f"{given.origin} {given.value} does not fit the checkpoint, whose {name} is {own}",
                hint=f"leave {option(name)} out, or start anew: gptjobs submit train",
            )
    preset = overrides.get(PRESET)
    if preset is not None and any(shape[k] != v for k, v in PRESETS.get(preset.value, {}).items()):
        raise Refused(
            f"the checkpoint is no {preset.value}: it has {_shape_in_words(parent.model)}",
            hint="leave --model out: a resume takes the checkpoint's",
        )


def _shape_in_words(model: ModelConfig) -> str:
    return f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}"


def _fit_positions(put: Any, values: dict[str, Any], origins: dict[str, str], parent: Settled | None) -> None:
    block, rows = values["block_size"], values["n_positions"]
    if block <= rows:
        _refuse_longer_evaluations(values["eval_context"], rows)
        return
    if parent is None and origins["n_positions"] == "default":
        put("n_positions", block, "block size")
    elif values["grow_positions"]:
        put("n_positions", block, option("grow_positions"))
    else:
        raise Refused(
            f"block size {block} is larger than the position table, which has {rows} rows",
            hint=f"--block-size {rows} or smaller, or --grow-positions to add untrained rows",
        )


def _refuse_longer_evaluations(context: int, rows: int) -> None:
    if context > rows:
        raise Refused(
            f"evaluations at a context of {context} tokens are longer than the position table, which has {rows} rows",
            hint=f"--eval-context {rows} or smaller",
        )


def check(overrides: Overrides) -> None:
    """Raise UsageError with every value that is out of its bounds, not only the first."""
    problems = []
    for name, given in overrides.items():
        if name == PRESET and given.value not in list(PRESETS):
            problems.append(f"{_said_by('model', given)}: {given.value!r} is none of {', '.join(PRESETS)}")
        problem = out_of_bounds(HYPERPARAMETERS[name], given.value) if name in HYPERPARAMETERS else None
        if problem:
            problems.append(f"{_said_by(name, given)}: {problem}")
    if problems:
        raise UsageError("; ".join(problems), hint="gptjobs submit train --help lists them")


def _said_by(name: str, given: Given) -> str:
    return option(name) if given.origin == option(name) else f"{option(name)} ({given.origin})"


def _check_together(values: Mapping[str, Any]) -> None:
    """Raise UsageError for values that do not go together."""
    width, heads = values["n_embd"], values["n_head"]
    if width % heads:
        raise UsageError(f"--n-embd {width} is no multiple of --n-head {heads}", hint="gptjobs submit train --help")
    for name in ("exact", "shard"):
        if values[name] and values["compile"] == "on":
            raise UsageError(f"--{name} and --compile on contradict each other", hint="leave one of them out")
    if values["batch_size"] < values["gpus"]:
        raise UsageError(
            f"--gpus {values['gpus']} share a batch of {values['batch_size']}: some would have no window of it",
            hint=f"--batch-size {values['gpus']} or more, or fewer --gpus",
        )
    if values["shard"] and (values["gpus"] == 1 or values["batch_size"] % values["gpus"]):
        raise UsageError(
            f"--shard splits a model over several --gpus, of which each takes as much of a batch; here are "
            f"{values['gpus']} and a batch of {values['batch_size']}",
            hint="--gpus 2 or more, and a --batch-size that is a multiple, or leave --shard out",
        )
    low, high = values["min_learning_rate"], values["learning_rate"]
    if values["schedule"] != "constant" and low > high:
        raise UsageError(
            f"the lowest learning rate {low:g} is above the peak {high:g}", hint="--min-learning-rate, --learning-rate"
        )


def out_of_bounds(each: "Field[Any]", value: Any) -> str | None:
    """What is wrong with `value` for this hyperparameter, or None."""
    kind = type(each.default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        return f"{value!r} is no {_KINDS[kind]}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no finite number"
    if isinstance(value, str) and not value.isprintable():
        return "it has control characters"
    bounds = each.metadata
    if bounds["choices"] and value not in bounds["choices"]:
        return f"'{value}' is none of {', '.join(bounds['choices'])}"
    if bounds["above"] is not None and value <= bounds["above"]:
        return f"{value} is not above {bounds['above']:g}"
    if bounds["low"] is not None and value < bounds["low"]:
        return f"{value} is below {bounds['low']:g}"
    if bounds["high"] is not None and value > bounds["high"]:
        return f"{value} is above {bounds['high']:g}"
    found: str | None = bounds["fault"](value)
    return found


def merge(*layers: Overrides) -> dict[str, Given]:
    """Later layers over earlier ones."""
    return {name: given for layer in layers for name, given in layer.items()}
