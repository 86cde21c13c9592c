"""The trainer's lines: what is written is what is read, and nothing else breaks a reader."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjobs.progress import (
    Alert,
    CheckpointWritten,
    Finished,
    Line,
    MicroBatch,
    Progress,
    StageBegan,
    decode,
    duration,
    encode,
    in_words,
)

STEP_2000 = Progress(
    step=2000,
    end_step=3500,
    tokens=8_192_000,
    train_loss=6.51,
    val_loss=6.65,
    eval_context=128,
    learning_rate=1e-5,
    grad_norm=0.75,
    tokens_per_s=81234.4,
    eta_s=305.2,
)


@pytest.mark.parametrize(
    "line",
    [
        STEP_2000,
        StageBegan(stage="encoding", done=0.25),
        StageBegan(stage="training"),
        CheckpointWritten(name="a.pt", step=1, tokens=2, size=3, val_loss=None),
        MicroBatch(step=7, device="mps", before=5, windows=3, reason="MPS backend out of memory"),
        Alert(name="checkpoint_failed", step=7, reason="No space left on device"),
        Finished(outcome="failed", step=None, reason="no space:\n\u2028 “disk”", hint="free some", exit_code=3),
    ],
    ids=lambda line: line.kind,
)
def test_a_line_is_read_as_it_was_written_and_stays_one_line(line: Line):
    text = encode(line, seconds=1.25)
    assert decode(text) == line
    assert len(text.splitlines()) == 1
    assert {"schema": 1, "kind": line.kind, "time": 1.25}.items() <= json.loads(text).items()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_are_sent_as_null(value: float):
    line = Progress(
        step=1, end_step=2, tokens=3, train_loss=value, val_loss=value, learning_rate=1e-3, grad_norm=value,
        tokens_per_s=value, eta_s=value,
    )  # fmt: skip

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads(encode(line, seconds=0.0), parse_constant=refuse)
    assert [record[name] for name in ("train_loss", "val_loss", "grad_norm", "tokens_per_s", "eta_s")] == [None] * 5
    assert record["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a stray print",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"kind":"weather","step":7}',
        '{"kind":[]}',
        '{"kind":"progress","step":7}',
        '{"schema":1,"kind":"finished"}',
    ],
)
def test_what_is_no_line_of_a_known_kind_is_ignored(text: str):
    assert decode(text) is None


def test_fields_from_a_later_version_are_ignored():
    record = {**json.loads(encode(STEP_2000, seconds=0.0)), "schema": 2, "loss_scale": {"a": 1}}
    assert decode(json.dumps(record)) == STEP_2000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", "2000"), ("step", 2000.5), ("step", True), ("step", None), ("end_step", [1]), ("tokens", 10**400),
        ("train_loss", math.nan), ("train_loss", math.inf), ("eta_s", "soon"), ("learning_rate", {}), ("kind", ["x"]),
    ],
)  # fmt: skip
def test_a_line_whose_values_are_not_its_fields_is_none(field: str, value: object):
    record = json.loads(encode(STEP_2000, seconds=0.0))
    assert decode(json.dumps(record | {field: value})) is None


def test_a_stage_and_an_outcome_are_among_those_that_are():
    assert decode('{"kind": "stage", "stage": "owning"}') is None
    assert decode('{"kind": "finished", "outcome": ["finished"], "step": 1}') is None


def test_a_line_nested_deep_is_none():
    assert decode('{"kind":' * 100_000) is None


@pytest.mark.parametrize("host", ["hot", 5, [1], True])
def test_what_an_alert_says_of_the_host_is_by_name(host: object):
    alert = Alert(name="slowdown", step=7, reason="slow", host={"memory": {"total": 1}, "busiest": [{"name": "x"}]})
    text = encode(alert, seconds=0.0)
    assert decode(text) == alert
    assert decode(json.dumps(json.loads(text) | {"host": host})) is None


@given(st.binary())
def test_garbage_is_no_line(garbage: bytes):
    assert decode(garbage.decode(errors="replace")) is None


def test_the_log_says_step_and_losses_first():
    words = in_words(STEP_2000)
    assert words.startswith("Step 2000: train loss 6.5100, val loss 6.6500, ")
    assert words.endswith("lr 1e-05, grad norm 0.7500, 81,234 tokens/s, 5m05s left")


def test_the_log_leaves_out_a_validation_loss_that_was_not_evaluated():
    line = Progress(
        step=7, end_step=9, tokens=1, train_loss=None, learning_rate=1e-3, grad_norm=math.inf, tokens_per_s=None,
        eta_s=None,
    )  # fmt: skip
    assert in_words(line) == "Step 7: train loss nan, lr 0.001, grad norm inf, ? tokens/s, ? left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "?"),
        (0.0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (125.0, "2m05s"),
        (3599.7, "1h00m"),
        (11_220.0, "3h07m"),
        (359_999.0, "99h59m"),
        (360_000.0, "4d04h"),
    ],
)
def test_durations_in_words(seconds: float | None, words: str):
    assert duration(seconds) == words
