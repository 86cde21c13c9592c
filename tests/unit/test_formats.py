"""The formats on disk and on the pipe, held against files that never change: what an older version wrote is read
as it was meant, and what is written now can be read by it.

A format may grow fields, so what is written may have more than its frozen file, but never less or other.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptjobs import checkpoint, durable, progress, record, trials
from gptjobs.checkpoint import Attempt, Checkpoint, Cursor, Losses, Manifest
from gptjobs.config import HYPERPARAMETERS, Given, ModelConfig, Plan, Settled, TrainConfig
from gptjobs.data import tokens
from gptjobs.data.tokens import TokensManifest
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.presence import Device, Presence
from gptjobs.progress import (
    Alert,
    ArithmeticSettled,
    CheckpointWritten,
    Evaluated,
    Finished,
    Line,
    MicroBatch,
    Progress,
    StageBegan,
)
from gptjobs.sweep import Dimension, Sweep, Trial

FROZEN = Path(__file__).parents[1] / "formats" / "v1"
JOB, PARENT = "3f9a01c2d4e5", "checkpoints/77aa0304b5c6/checkpoint_gpt2_text_step000200_11222025_120001.pt"
DIGEST = "d01c" * 16

SPEC = JobSpec(
    id=JOB,
    kind="resume",
    name="second",
    overrides={
        "learning_rate": Given(1e-5, "--learning-rate"),
        "batch_size": Given(32, "BATCH_SIZE"),
        "data": Given("sources/Bücher.md", "gptjobs.toml"),
    },
    parent=PARENT,
    data_digest=DIGEST,
    accept_data_change=True,
    device="cuda",
    priority=9,
    submitted_at=1763812800.25,
)

MODEL = ModelConfig(n_layer=4, n_head=4, n_embd=128, n_positions=2048, vocab_size=256)
TRAIN = TrainConfig(
    data="sources/text.md",
    encoding="bytes",
    steps=1500,
    batch_size=32,
    micro_batch=8,
    block_size=256,
    learning_rate=1e-5,
    schedule="linear",
    warmup_steps=20,
    decay_steps=1400,
    min_learning_rate=1e-6,
    schedule_start=200,
    weight_decay=0.05,
    beta1=0.85,
    beta2=0.99,
    epsilon=1e-7,
    grad_clip=0.5,
    dropout=0.1,
    eval_interval=50,
    eval_tokens=8192,
    checkpoint_interval=100,
    log_interval=5,
    target_val_loss=1.5,
    patience=3,
    precision="float32",
    grow_positions=True,
    seed=7,
)


def frozen(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((FROZEN / name).read_bytes())
    return made


def settled(origins: dict[str, str]) -> Settled:
    """The settings in `config.json` and `manifest.json`, once `origins` were looked at."""
    said = {name: origin for name, origin in origins.items() if origin != "checkpoint"}
    assert said == {"learning_rate": "--learning-rate", "batch_size": "BATCH_SIZE", "vocab_size": "encoding bytes"}
    return Settled(model=MODEL, train=TRAIN, start_step=200, origins=with_later_ones(origins))


def with_later_ones(origins: dict[str, str]) -> dict[str, str]:
    """What was added since has its default."""
    return dict.fromkeys(HYPERPARAMETERS, "default") | origins


PLAN = Plan(
    job=JOB,
    kind="resume",
    settled=settled(frozen("config.json")["origins"]),
    data_name="text",
    data_digest=DIGEST,
    parent=PARENT,
)
MANIFEST = Manifest(
    job=JOB,
    token=3,
    step=350,
    tokens=1_331_200,
    losses=Losses(train_loss=2.5, val_loss=2.75, eval_step=350, eval_context=256, eval_tokens=8192),
    cursor=Cursor(block_size=256, windows=4800),
    settled=settled(frozen("manifest.json")["settled"]["origins"]),
    data_name="text",
    data_digest=DIGEST,
    parent=f"checkpoints/{JOB}/checkpoint_gpt2_text_step000300_11222025_120101.pt",
    size=2_961_152,
    sha256="5a5b" * 16,
    versions={"gptjobs": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    status="quarantined",
    reason="poisoned",
)
NOT_KNOWN = "the file does not say"
IMPORTED = Manifest(
    job=None,
    token=0,
    step=1000,
    tokens=0,
    losses=Losses(train_loss=2.5, val_loss=2.75),
    cursor=Cursor(block_size=0, windows=0),
    settled=Settled(
        model=ModelConfig(
            n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=288, activation="gelu", bias=False, tied=False
        ),
        train=TrainConfig(
            encoding="bytes", steps=1000, block_size=16, learning_rate=1e-5, schedule="constant", warmup_steps=0
        ),
        start_step=0,
        origins=with_later_ones(frozen("imported.json")["settled"]["origins"]),
    ),
    data_name="training_data_final_merged",
    data_digest=None,
    parent=None,
    size=118_294,
    sha256="c0de" * 16,
    versions={},
    layout="bare state dict",
    has_moments=False,
    written_at=1763822844.0,
    sources={"step": "the file's name", "n_head": "--n-head", "tokens": f"{NOT_KNOWN}: counted from here"},
)
ATTEMPT = Attempt(
    token=3,
    start=f"checkpoints/{JOB}/checkpoint_gpt2_text_step000300_11222025_120101.pt",
    start_step=300,
    start_token=2,
    worker="worker@host",
    device="cuda:0",
    began_at=1763812900.5,
)
OUTCOME = Outcome(
    state=JobState.DIVERGED,
    reason="loss or gradient is not finite at step 230, learning rate 0.1",
    hint=f"gptjobs submit resume --from checkpoints/{JOB}/a.pt --learning-rate 0.01",
)
TEXT = b"Once upon a time.\nThe end.\n"
TOKENS = TokensManifest(
    source="text.md",
    source_sha256="7e19c7a468b46e1e3c8438625cb85ecba93d6de39c74d15c92377534c3f5e240",
    source_bytes=27,
    encoding="bytes",
    token_count=27,
    offset_every=4096,
)
LINES: list[Line] = [
    StageBegan(stage="encoding", done=0.25),
    StageBegan(stage="training"),
    Progress(
        step=2000, end_step=3500, tokens=8_192_000, train_loss=6.51, val_loss=6.65, eval_context=128,
        learning_rate=1e-5, grad_norm=0.75, tokens_per_s=81234.5, eta_s=305.25,
    ),
    Progress(
        step=2010, end_step=3500, tokens=8_232_960, train_loss=None, learning_rate=1e-5, grad_norm=None,
        tokens_per_s=None, eta_s=None,
    ),
    CheckpointWritten(
        name="checkpoint_gpt2_text_step002000_11222025_120004.pt", step=2000, tokens=8_192_000, size=2_961_152,
        val_loss=6.65,
    ),
    MicroBatch(step=2010, device="cuda", before=32, windows=16, reason="CUDA out of memory. Tried to allocate 3 GiB."),
    Alert(
        name="checkpoint_failed", step=2010,
        reason="the checkpoint of step 2010 could not be written: No space left on device",
    ),
    ArithmeticSettled(
        step=2000, words="cpu, 1 thread (AVX2), float32, not compiled",
        before="cpu, 2 threads (AVX2), float32, not compiled",
    ),
    Evaluated(step=2000, eval_context=128, eval_tokens=512, losses=[6.5, 6.75, 6.625, 6.75]),
    Finished(
        outcome="failed",
        step=2010,
        reason="the checkpoint of step 2010 could not be written: No space left on device",
        hint="free space",
        exit_code=3,
    ),
]  # fmt: skip

TRIAL = Trial(number=3, params={"learning_rate": 5e-5, "block_size": 64}, attrs={"cma:generation": 1})
SWEEP = Sweep(
    id="5a0b1c2d3e4f",
    name="rates",
    parent=PARENT,
    overrides={"steps": Given(500, "--steps")},
    dimensions=(
        Dimension(name="block_size", choices=(64, 128)),
        Dimension(name="learning_rate", low=1e-5, high=1e-3, log=True),
    ),
    changes={"dropout": Given(0.1, "--dropout")},
    sampler="tpe",
    pruner="asha",
    trials=20,
    parallel=2,
    budget_tokens=1_000_000,
    seed=7,
    data_digest=DIGEST,
    device="cuda",
    priority=9,
    submitted_at=1763812800.25,
)

ADDRESSES = ("ntfy://a-topic", "mailtos://me:p%40ss@mail.example?to=you@mail.example")

EXPECTED: dict[str, Any] = {
    "job.json": SPEC,
    "config.json": PLAN,
    "manifest.json": MANIFEST,
    "imported.json": IMPORTED,
    "attempt.json": ATTEMPT,
    "outcome.json": OUTCOME,
    "tokens.json": TOKENS,
    "sweep.json": SWEEP,
    "trial.json": TRIAL,
    "notify.json": ADDRESSES,
}
GROWING: dict[str, tuple[str, ...]] = {
    "job.json": ("", "overrides.learning_rate"),
    "config.json": ("", "model", "train"),
    "manifest.json": ("", "losses", "cursor", "settled", "settled.model", "settled.train"),
    "imported.json": ("", "losses", "cursor", "settled", "settled.model", "settled.train"),
    "attempt.json": ("",),
    "outcome.json": ("",),
    "tokens.json": ("",),
    "sweep.json": ("",),
    "trial.json": ("",),
    "notify.json": ("",),
}
"""the places in each format where a later version may add fields"""


def place_of(layout: Layout, name: str) -> Path:
    """Where the storage root has such a file."""
    return {
        "job.json": layout.job_file(JOB),
        "config.json": layout.config_file(JOB),
        "manifest.json": layout.path(f"checkpoints/{JOB}/a.json"),
        "imported.json": layout.path("checkpoints/imported/a.json"),
        "attempt.json": layout.attempt_file(JOB, ATTEMPT.token),
        "outcome.json": layout.outcome_file(JOB),
        "sweep.json": layout.sweep_file(SWEEP.id),
        "notify.json": layout.addresses_file(JOB),
        "trial.json": layout.trial_file(SWEEP.id, TRIAL.number),
        "tokens.json": layout.token_file("text", TOKENS.source_sha256, "bytes").with_suffix(".json"),
    }[name]


def read(layout: Layout, name: str, content: dict[str, Any]) -> Any:
    """What today's code makes of this content in its place."""
    path = place_of(layout, name)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    if name == "job.json":
        return JobSpec.from_dict(json.loads(path.read_bytes()))
    if name == "config.json":
        return record.read_plan(layout, JOB)
    if name in ("manifest.json", "imported.json"):
        file = path.with_suffix(".pt")
        file.touch()
        return checkpoint.read(layout, file.relative_to(layout.root).as_posix()).manifest
    if name == "notify.json":
        return record.read_addresses(layout, JOB)
    if name == "attempt.json":
        return checkpoint.read_attempt(layout, JOB, ATTEMPT.token)
    if name == "outcome.json":
        return record.read_outcome(layout, JOB)
    if name == "sweep.json":
        return trials.read_sweep(layout, SWEEP.id)
    if name == "trial.json":
        return Trial.from_dict(json.loads(path.read_bytes()))
    return tokens.read_manifest(path.with_suffix(".bin"))


def written(layout: Layout, name: str) -> dict[str, Any]:
    """What today's code writes for the frozen file's content."""
    path = place_of(layout, name)
    if name == "job.json":
        record.write_spec(layout, SPEC)
    elif name == "notify.json":
        record.write_addresses(layout, JOB, ADDRESSES)
    elif name in ("config.json", "manifest.json", "imported.json"):
        path.parent.mkdir(parents=True)
        path.write_bytes(durable.to_json(EXPECTED[name].to_dict()))
    elif name == "attempt.json":
        start = Checkpoint(name=str(ATTEMPT.start), manifest=replace(MANIFEST, step=300, token=2))
        made = checkpoint.begin_attempt(layout, JOB, 3, start, worker="worker@host", device="cuda:0")
        path.write_bytes(durable.to_json({**json.loads(path.read_bytes()), "began_at": ATTEMPT.began_at}))
        assert time.time() - made.began_at < 60
    elif name == "outcome.json":
        record.write_outcome(layout, JOB, OUTCOME, token=3)
    elif name == "sweep.json":
        trials.write_sweep(layout, SWEEP)
    elif name == "trial.json":
        trials.write_sweep(layout, SWEEP)
        trials.write_trial(layout, SWEEP.id, TRIAL)
    else:
        source = layout.root / "sources" / TOKENS.source
        source.write_bytes(TEXT)
        tokens.prepare(layout, source, TOKENS.source_sha256, TOKENS.encoding)
    made: dict[str, Any] = json.loads(path.read_bytes())
    return made


def of_frozen_fields(made: Any, old: Any) -> Any:
    """`made` without the fields that were added since."""
    if not isinstance(old, dict) or not isinstance(made, dict):
        return made
    return {name: of_frozen_fields(value, old[name]) for name, value in made.items() if name in old}


def exact(value: Any) -> str:
    """JSON tells 1 from 1.0 and true, which == does not."""
    return json.dumps(value, sort_keys=True)


def test_every_frozen_file_is_held_against_the_code():
    assert {path.name for path in FROZEN.iterdir()} == {*EXPECTED, "lines.jsonl", "presence.json"}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_an_older_version_wrote_is_read_as_it_was_meant(layout: Layout, name: str):
    assert read(layout, name, frozen(name)) == EXPECTED[name]


def test_a_manifest_from_before_imports_is_gptjobs_own_and_has_moments():
    old = frozen("manifest.json")
    assert not {"layout", "has_moments", "written_at", "sources"} & old.keys()
    assert not {"activation", "bias", "tied"} & old["settled"]["model"].keys()
    made = Manifest.from_dict(old)
    assert (made.layout, made.has_moments, made.written_at, made.sources) == ("gptjobs", True, None, {})
    model = made.settled.model
    assert (model.activation, model.bias, model.tied) == ("gelu_tanh", True, True)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "imported.json"])
def test_every_value_has_an_origin_also_one_that_was_added_since(name: str):
    record = frozen(name).get("settled", frozen(name))
    assert not {"optimizer", "data_cursor", "rewarm_steps"} & record["train"].keys()
    made = Settled.from_dict(record)
    assert made.origins.keys() == HYPERPARAMETERS.keys()
    assert (made.train.optimizer, made.train.data_cursor, made.origins["optimizer"]) == ("keep", "keep", "default")


def test_an_imported_manifest_knows_what_the_file_did_not_say():
    made = Manifest.from_dict(frozen("imported.json")).settled
    assert made.knows("block_size")
    assert not any(made.knows(name) for name in ("learning_rate", "steps", "data", "dropout"))


@pytest.mark.parametrize("name", EXPECTED)
def test_fields_that_a_later_version_added_are_ignored(layout: Layout, name: str):
    content = frozen(name)
    for place in GROWING[name]:
        entry = content
        for part in filter(None, place.split(".")):
            entry = entry[part]
        entry["from_a_later_version"] = {"a": [1]}
    assert read(layout, name, content) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_written_now_is_what_was_always_written(layout: Layout, name: str):
    assert exact(of_frozen_fields(written(layout, name), frozen(name))) == exact(frozen(name))


@pytest.mark.parametrize(("number", "line"), list(enumerate(LINES)))
def test_lines_are_read_and_written_as_ever(number: int, line: Line):
    text = (FROZEN / "lines.jsonl").read_text().splitlines()[number]
    old = json.loads(text)
    assert progress.decode(text) == line
    assert progress.decode(json.dumps({**old, "from_a_later_version": {"a": [1]}})) == line
    now = json.loads(progress.encode(line, seconds=old["time"]))
    assert exact(of_frozen_fields(now, old)) == exact(old)


def test_there_is_a_frozen_line_of_every_kind():
    kinds = [json.loads(text)["kind"] for text in (FROZEN / "lines.jsonl").read_text().splitlines()]
    assert kinds == [line.kind for line in LINES]
    assert set(kinds) == {kind.kind for kind in Line.__args__}


def test_a_workers_record_of_version_1_is_read_and_written_as_ever() -> None:
    frozen = json.loads((FROZEN / "presence.json").read_text())
    meant = Presence(
        name="mac@host", host="host", version="0.1.0", schema=1, queues=["mps", "any"], slots=["mps"], busy=1,
        jobs=[JOB], started_at=1763812800.25,
    )  # fmt: skip
    assert Presence.from_dict(frozen) == meant
    assert Presence.from_dict({**frozen, "added_later": {"x": 1}}) == meant
    assert frozen.items() <= meant.to_dict().items()


def test_what_a_worker_tells_of_its_devices_comes_back_and_what_cannot_be_right_hides_no_worker() -> None:
    frozen = json.loads((FROZEN / "presence.json").read_text())
    told = replace(
        Presence.from_dict(frozen),
        devices=[Device(name="mps", product="Apple M3 Max", memory=64 << 30, memory_free=40 << 30)],
        versions={"torch": "2.13.0", "python": "3.12.1"},
        memory=64 << 30,
        memory_free=40 << 30,
    )
    assert Presence.from_dict(json.loads(json.dumps(told.to_dict()))) == told
    odd = {
        "devices": [7, {}, {"name": ["mps"]}, {"name": "cuda:9"}, {"name": "mps", "product": "\x1b[2J", "memory": -1}],
        "versions": {"torch": "2; rm x", "python": 3.12},
        "memory": "all",
        "memory_free": True,
    }
    read = Presence.from_dict({**frozen, **odd})
    assert read.devices == [Device(name="mps", product="[2J")]
    assert (read.versions, read.memory, read.memory_free) == ({}, None, None)
    assert Presence.from_dict({**frozen, "devices": None, "versions": []}) == Presence.from_dict(frozen)
