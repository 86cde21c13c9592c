"""The training loop in this process, on tiny models: exact continuation, checkpoints, early and bad ends."""

import errno
import hashlib
import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gptjobs import checkpoint, durable, storage
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Given, Plan, settle
from gptjobs.data import tokens
from gptjobs.errors import GptjobsError, Refused, StorageAway
from gptjobs.job import Cause
from gptjobs.layout import Layout
from gptjobs.progress import CheckpointWritten, Finished, Line, Progress
from worker.child import Stop
from worker.trainer import commit, saving, state
from worker.trainer.batches import Batches
from worker.trainer.device import open_device
from worker.trainer.loop import train

CPU = open_device("cpu", "float32")
TINY: dict[str, Any] = {
    "data": "sources/text.md", "encoding": "bytes", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16,
    "steps": 6, "batch_size": 4, "block_size": 8, "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 2,
    "eval_interval": 3, "eval_tokens": 64, "checkpoint_interval": 3, "log_interval": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planned(layout: Layout, job: str, parent: Checkpoint | None = None, **values: Any) -> Plan:
    """The plan of a job with these overrides; its data is encoded."""
    source = layout.root / "sources" / "text.md"
    digest = tokens.digest_of(source)
    tokens.prepare(layout, source, digest, "bytes")
    given = {name: Given(value, "test") for name, value in (values if parent else TINY | values).items()}
    if parent is None:
        settled = settle(given)
    else:
        settled = settle(given, parent=parent.manifest.settled, parent_step=parent.manifest.step)
    return Plan(
        job=job, kind="resume" if parent else "train", settled=settled, data_name="text", data_digest=digest,
        parent=parent.name if parent else None,
    )  # fmt: skip


@dataclass
class Ended:
    """How one attempt went: its end, its lines, and the job's newest checkpoint then."""

    finished: Finished
    lines: list[Line]
    newest: Checkpoint | None

    @property
    def progress(self) -> list[Progress]:
        return [each for each in self.lines if isinstance(each, Progress)]

    @property
    def last(self) -> Checkpoint:
        assert self.newest is not None
        return self.newest


class Killed(BaseException):
    """Stands for the end of the process."""


def attempted(
    layout: Layout, plan: Plan, stop_at: int | None = None, killed_at: int | None = None,
    heard: Callable[[Line], None] = lambda line: None,
) -> Ended:  # fmt: skip
    """The job's next attempt; with `stop_at` it is asked to stop before that step is over. `heard` has each line."""
    start = checkpoint.start_of_next_attempt(layout, plan.job, plan.parent)
    token = checkpoint.latest_token(layout, plan.job) + 1
    attempt = checkpoint.begin_attempt(layout, plan.job, token, start, worker="test", device="cpu")
    stop, lines = Stop(), list[Line]()

    def report(line: Line) -> None:
        lines.append(line)
        heard(line)
        if isinstance(line, Progress) and line.step + 1 == stop_at:
            stop.requested = True
        if isinstance(line, Progress) and line.step == killed_at:
            raise Killed

    device = open_device("cpu", plan.settled.train.precision)
    finished = train(layout, plan, attempt, start, device, report, stop)
    counting = checkpoint.counting(layout, plan.job)
    return Ended(finished, lines, counting[-1] if counting else None)


def contents(layout: Layout, made: Checkpoint) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(layout.path(made.name), weights_only=True)
    return loaded


def tensors(layout: Layout, made: Checkpoint) -> dict[str, torch.Tensor]:
    """Every weight and moment of a checkpoint, by name."""
    saved = contents(layout, made)
    moments = {f"{name}/{each}": moment for name, own in saved["optimizer"].items() for each, moment in own.items()}
    return {**saved["model"], **moments}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_first_line_is_at_the_start_before_any_update(layout: Layout) -> None:
    plan = planned(layout, "job")
    first = attempted(layout, plan).progress[0]
    assert (first.step, first.end_step, first.tokens) == (0, 6, 0)
    assert first.val_loss == pytest.approx(math.log(256), abs=0.1)
    assert first.train_loss == pytest.approx(math.log(256), abs=0.1)
    assert first.grad_norm is not None and first.grad_norm > 0
    assert first.eval_context == 8
    assert first.learning_rate == pytest.approx(0.5e-2)


def test_the_loss_falls_and_the_last_line_says_so(layout: Layout) -> None:
    ended = attempted(layout, planned(layout, "job", steps=40, batch_size=16))
    assert (ended.finished.outcome, ended.finished.step, ended.finished.exit_code) == ("finished", 40, 0)
    evaluated = [each for each in ended.progress if each.val_loss is not None]
    assert [each.step for each in evaluated] == [*range(0, 40, 3), 40]
    assert evaluated[-1].val_loss < 4.5
    assert ended.progress[-1].train_loss < 4.5


def test_the_reported_validation_loss_is_the_mean_over_the_held_out_windows(layout: Layout) -> None:
    plan = planned(layout, "job", eval_tokens=50, micro_batch=4, dropout=0.5)
    ended = attempted(layout, plan)
    model = state.load(layout, plan, ended.last, CPU).model.eval()
    data = Batches(layout.token_file("text", plan.data_digest, "bytes"), 8, seed=0)
    inputs, targets = next(data.held_out(range(6), 8, rows=6))
    assert ended.last.manifest.losses.eval_tokens == targets.numel() == 48
    with torch.no_grad():
        expected = model.loss(inputs, targets).item()
    assert ended.last.manifest.losses.val_loss == pytest.approx(expected, rel=1e-6)
    assert ended.progress[-1].val_loss == ended.last.manifest.losses.val_loss


def test_a_checkpoint_is_written_at_each_interval_and_at_the_end(layout: Layout) -> None:
    ended = attempted(layout, planned(layout, "job", steps=7))
    written = checkpoint.of_job(layout, "job")
    assert [each.manifest.step for each in written] == [3, 6, 7]
    assert [each.manifest.tokens for each in written] == [96, 192, 224]
    assert [each.manifest.cursor.windows for each in written] == [12, 24, 28]
    assert [each.manifest.parent for each in written] == [None, written[0].name, written[1].name]
    assert [each.step for each in ended.lines if isinstance(each, CheckpointWritten)] == [3, 6, 7]
    for each in written:
        content = layout.path(each.name).read_bytes()
        assert each.manifest.sha256 == hashlib.sha256(content).hexdigest()
        assert each.manifest.size == len(content)
        assert contents(layout, each)["step"] == each.manifest.step
    assert len(files(layout.job_checkpoints("job"))) == 6


def test_a_checkpoints_line_has_the_validation_loss_of_its_manifest(layout: Layout) -> None:
    ended = attempted(layout, planned(layout, "job", checkpoint_interval=2))
    lines = [each for each in ended.lines if isinstance(each, CheckpointWritten)]
    losses = [each.manifest.losses.val_loss for each in checkpoint.of_job(layout, "job")]
    assert [loss is None for loss in losses] == [True, True, False]
    assert [each.val_loss for each in lines] == losses


def test_the_same_seed_gives_the_same_weights_to_the_bit(layout: Layout) -> None:
    one, same, other = (
        tensors(layout, attempted(layout, planned(layout, job, dropout=0.2, seed=seed)).last)
        for job, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert_same_bits(one, same)
    assert not torch.equal(one["transformer.h.0.mlp.c_fc.weight"], other["transformer.h.0.mlp.c_fc.weight"])


@pytest.mark.parametrize(
    "values", [{}, {"dropout": 0.2}, {"micro_batch": 3}, {"dropout": 0.2, "micro_batch": 2, "schedule": "cosine"}]
)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_stopped_and_continued_is_bit_equal_to_never_stopped(
    layout: Layout, values: dict[str, Any], stop_at: int
) -> None:
    never = attempted(layout, planned(layout, "never", **values))
    plan = planned(layout, "stopped", **values)
    stopped = attempted(layout, plan, stop_at=stop_at)
    assert (stopped.finished.outcome, stopped.finished.step) == ("stopped", stop_at)
    assert stopped.last.manifest.step == stop_at
    went_on = attempted(layout, plan)
    assert (went_on.finished.outcome, went_on.progress[0].step) == ("finished", stop_at)
    assert_same_bits(tensors(layout, never.last), tensors(layout, went_on.last))
    for name in ("step", "tokens", "cursor", "losses"):
        assert getattr(never.last.manifest, name) == getattr(went_on.last.manifest, name)


def test_killed_and_continued_is_bit_equal_to_never_stopped(layout: Layout) -> None:
    never = attempted(layout, planned(layout, "never", dropout=0.2))
    plan = planned(layout, "killed", dropout=0.2)
    with pytest.raises(Killed):
        attempted(layout, plan, killed_at=5)
    went_on = attempted(layout, plan)
    assert went_on.progress[0].step == 3
    assert_same_bits(tensors(layout, never.last), tensors(layout, went_on.last))


def test_dropout_acts_on_every_update(layout: Layout) -> None:
    without, dropped = (
        attempted(layout, planned(layout, f"dropout-{size}", dropout=size)).progress for size in (0.0, 0.5)
    )
    assert without[0].val_loss == dropped[0].val_loss
    assert not {each.grad_norm for each in without} & {each.grad_norm for each in dropped}


def test_an_update_is_as_large_as_the_learning_rate_of_its_step(layout: Layout) -> None:
    """AdamW's first update moves what does not decay by the rate itself: here half of it, in the warm-up."""
    ended = attempted(layout, planned(layout, "job", steps=1))
    moved = (contents(layout, ended.last)["model"]["transformer.ln_f.weight"] - 1.0).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5e-2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_micro_batches_give_the_same_gradients(layout: Layout, micro_batch: int) -> None:
    """After one update a tensor's first moment is a tenth of its gradient."""
    values = {"steps": 1, "batch_size": 8, "grad_clip": 0.0, "beta1": 0.9}
    whole, parts = (
        contents(layout, attempted(layout, planned(layout, f"micro-{size}", micro_batch=size, **values)).last)
        for size in (0, micro_batch)
    )
    for name, moments in whole["optimizer"].items():
        torch.testing.assert_close(parts["optimizer"][name]["exp_avg"], moments["exp_avg"], rtol=1e-4, atol=1e-8)


def test_a_resume_with_other_settings_counts_on_and_keeps_its_place(layout: Layout) -> None:
    parent = attempted(layout, planned(layout, "parent")).last
    plan = planned(layout, "child", parent, steps=3, batch_size=2, learning_rate=1e-4)
    ended = attempted(layout, plan)
    assert (ended.progress[0].step, ended.progress[0].tokens, ended.progress[0].end_step) == (6, 192, 9)
    assert {each.learning_rate for each in ended.progress} == {1e-4}
    manifest = ended.last.manifest
    assert (manifest.step, manifest.tokens, manifest.cursor.windows) == (9, 192 + 3 * 16, 24 + 3 * 2)
    assert checkpoint.of_job(layout, "child")[0].manifest.parent == parent.name
    assert ended.progress[0].val_loss == parent.manifest.losses.val_loss
    assert ended.progress[0].train_loss == first_loss(layout, plan, parent, seen=24)


def first_loss(layout: Layout, plan: Plan, parent: Checkpoint, seen: int) -> Any:
    """Of the parent's weights on the windows after the first `seen`."""
    train = plan.settled.train
    data = Batches(layout.token_file("text", plan.data_digest, "bytes"), train.block_size, train.seed)
    with torch.no_grad():
        loss = state.load(layout, plan, parent, CPU).model.loss(*data.batch(seen, train.batch_size))
    return pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(("values", "tokens_a_step"), [({"seed": 2}, 32), ({"block_size": 4}, 16)])
def test_a_resume_in_another_order_of_the_data_begins_with_its_first_window(
    layout: Layout, values: dict[str, int], tokens_a_step: int
) -> None:
    parent = attempted(layout, planned(layout, "parent")).last
    plan = planned(layout, "child", parent, steps=3, **values)
    ended = attempted(layout, plan)
    assert (ended.last.manifest.cursor.windows, ended.last.manifest.tokens) == (12, 192 + 3 * tokens_a_step)
    assert ended.progress[0].train_loss == first_loss(layout, plan, parent, seen=0)


def test_a_smaller_block_uses_the_front_of_the_position_table(layout: Layout) -> None:
    parent = attempted(layout, planned(layout, "parent")).last
    moments = tensors(layout, parent)["transformer.wpe.weight/exp_avg"]
    assert moments[:8].count_nonzero(dim=1).min() > 0
    assert moments[8:].count_nonzero() == 0
    plan = planned(layout, "child", parent, steps=3, block_size=4)
    model = state.load(layout, plan, parent, CPU).model.eval()
    assert torch.equal(model.wpe.weight, contents(layout, parent)["model"]["transformer.wpe.weight"])
    data = Batches(layout.token_file("text", plan.data_digest, "bytes"), 4, seed=0)
    with torch.no_grad():
        model.wpe.weight[4:] = math.nan
        expected = model.loss(*next(data.held_out(range(16), 4, rows=16))).item()
    assert attempted(layout, plan).progress[0].val_loss == pytest.approx(expected, rel=1e-6)


def test_growing_the_position_table_keeps_its_rows_and_trains_the_new_ones(layout: Layout) -> None:
    parent = attempted(layout, planned(layout, "parent", n_positions=8)).last
    plan = planned(layout, "child", parent, steps=2, block_size=12, grow_positions=True)
    table = contents(layout, parent)["model"]["transformer.wpe.weight"]
    grown = state.load(layout, plan, parent, CPU).model.wpe.weight.detach()
    assert grown.shape[0] == 12
    assert torch.equal(grown[:8], table)
    assert 0.005 < grown[8:].std().item() < 0.05
    trained = tensors(layout, attempted(layout, plan).last)
    assert trained["transformer.wpe.weight/exp_avg"].count_nonzero(dim=1).min() > 0
    with pytest.raises(Refused, match="larger than the position table"):
        planned(layout, "refused", parent, block_size=12)


TARGET: dict[str, Any] = {"target_val_loss": 5.0, "learning_rate": 0.05, "steps": 60, "checkpoint_interval": 100}
STUCK: dict[str, Any] = {
    "learning_rate": 1e-30, "patience": 2, "eval_interval": 2, "steps": 20, "checkpoint_interval": 100,
}  # fmt: skip


def test_it_stops_early_at_its_target_with_a_checkpoint(layout: Layout) -> None:
    ended = attempted(layout, planned(layout, "job", **TARGET))
    first = next(each for each in ended.progress if (each.val_loss or math.inf) <= 5.0)
    assert (ended.finished.outcome, ended.finished.step, ended.finished.exit_code) == ("target", first.step, 0)
    assert 0 < first.step < 60
    assert ended.last.manifest.step == first.step
    assert ended.last.manifest.losses.val_loss == first.val_loss


def test_it_stops_early_when_no_evaluation_is_better(layout: Layout) -> None:
    ended = attempted(layout, planned(layout, "job", **STUCK))
    assert (ended.finished.outcome, ended.finished.step) == ("patience", 4)
    assert ended.last.manifest.step == 4


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_patience_is_that_of_a_job_that_was_never_stopped(layout: Layout, stop_at: int) -> None:
    """The evaluation that every attempt begins with is not one more without a better loss."""
    plan = planned(layout, "job", **STUCK)
    assert attempted(layout, plan, stop_at=stop_at).finished.outcome == "stopped"
    went_on = attempted(layout, plan)
    assert (went_on.finished.outcome, went_on.finished.step) == ("patience", 4)


def test_an_evaluation_that_a_killed_attempt_had_counted_counts_once(layout: Layout) -> None:
    plan = planned(layout, "job", **{**STUCK, "checkpoint_interval": 2})
    with pytest.raises(Killed):
        attempted(layout, plan, killed_at=3)
    went_on = attempted(layout, plan)
    assert (went_on.progress[0].step, went_on.finished.outcome, went_on.finished.step) == (2, "patience", 4)


def test_a_resume_has_patience_of_its_own(layout: Layout) -> None:
    parent = attempted(layout, planned(layout, "job", **STUCK)).last
    resumed = attempted(layout, planned(layout, "child", parent, steps=20))
    assert (resumed.finished.outcome, resumed.finished.step) == ("patience", 8)


@pytest.mark.parametrize("values", [TARGET, STUCK])
def test_what_had_stopped_early_trains_no_step_more_when_its_end_was_not_recorded(
    layout: Layout, values: dict[str, Any]
) -> None:
    plan = planned(layout, "job", **values)
    first, again = attempted(layout, plan), attempted(layout, plan)
    assert (again.finished.outcome, again.finished.step) == (first.finished.outcome, first.finished.step)
    assert len(checkpoint.of_job(layout, "job")) == 1


def test_a_job_that_is_asked_to_stop_at_its_last_step_ends_with_a_validation_loss(layout: Layout) -> None:
    never = attempted(layout, planned(layout, "never"))
    plan = planned(layout, "job")
    ended = attempted(layout, plan, stop_at=6)
    if ended.finished.outcome == "stopped":
        ended = attempted(layout, plan)
    assert (ended.finished.outcome, ended.finished.step) == ("finished", 6)
    assert ended.progress[-1].val_loss == never.progress[-1].val_loss
    assert ended.last.manifest.losses == never.last.manifest.losses


def test_a_finished_job_trains_no_step_more_when_its_end_was_not_recorded(layout: Layout) -> None:
    plan = planned(layout, "job")
    attempted(layout, plan)
    before = files(layout.job_checkpoints("job"))
    again = attempted(layout, plan)
    assert (again.finished.outcome, again.finished.step) == ("finished", 6)
    assert files(layout.job_checkpoints("job")) == before


@pytest.mark.parametrize("eval_interval", [1, 100])
def test_a_learning_rate_that_makes_the_loss_no_number_ends_as_diverged(layout: Layout, eval_interval: int) -> None:
    values = {"learning_rate": 10.0, "weight_decay": 10.0, "grad_clip": 0.0, "on_spike": "warn"}
    plan = planned(
        layout, "job", steps=50, warmup_steps=0, checkpoint_interval=1, eval_interval=eval_interval, **values
    )
    ended = attempted(layout, plan)
    assert ended.finished.outcome == "diverged"
    assert ended.finished.step is not None and ended.finished.step < 50
    assert "no finite number" in (ended.finished.reason or "")
    assert ended.finished.hint == "gptjobs submit resume --from job@best --learning-rate 1"
    for each in checkpoint.of_job(layout, "job"):
        assert [name for name, tensor in tensors(layout, each).items() if not tensor.isfinite().all()] == []
    names = {Path(each.name).stem for each in checkpoint.of_job(layout, "job")}
    assert {Path(name).stem for name in files(layout.job_checkpoints("job"))} == names


def test_a_poisoned_checkpoint_is_refused(layout: Layout) -> None:
    made = attempted(layout, planned(layout, "job")).last
    saved = contents(layout, made)
    saved["model"]["transformer.h.0.attn.c_attn.weight"][3, 5] = math.nan
    torch.save(saved, layout.path(made.name))
    with pytest.raises(Refused, match=r"poisoned: transformer\.h\.0\.attn\.c_attn\.weight"):
        state.load(layout, planned(layout, "child", made), made, CPU)


def save(layout: Layout, plan: Plan, at: state.TrainingState) -> None:
    """As at the end of an attempt."""
    at.written_step = None
    with saving.Saver(layout, plan, 1, lambda line: None) as saver:
        saver.finish(at, saves=True)


def test_a_second_checkpoint_in_the_same_second_overwrites_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(layout, "job")
    at = state.load(layout, plan, None, CPU)
    monkeypatch.setattr(commit.time, "time", lambda: 1.75e9)
    save(layout, plan, at)
    before = files(layout.job_checkpoints("job"))
    save(layout, plan, at)
    after = files(layout.job_checkpoints("job"))
    assert len(after) == 4
    assert before.items() <= after.items()


def test_a_full_disk_says_so_and_keeps_the_checkpoint_before(layout: Layout) -> None:
    plan = planned(layout, "job")
    kept = attempted(layout, plan, stop_at=3).last
    before = files(layout.job_checkpoints("job"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kept.manifest.size // 2, limits[1]))
    try:
        with pytest.raises(GptjobsError, match=r"checkpoint of step 6 could not be written: File too large") as caught:
            attempted(layout, plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept.name in (caught.value.hint or "")
    assert storage.cause_of(caught.value) is Cause.NO_SPACE
    assert files(layout.job_checkpoints("job")) == before
    assert attempted(layout, plan).finished.outcome == "finished"


def broken(*arguments: object, **named: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("step", ["place", "create"])
def test_a_checkpoint_that_the_storage_does_not_take_leaves_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Neither its file nor its manifest; what went wrong is the storage's."""
    plan = planned(layout, "job")
    at = state.load(layout, plan, None, CPU)
    monkeypatch.setattr(durable, step, broken)
    with pytest.raises(StorageAway, match="step 0 could not be written: Input/output error"):
        save(layout, plan, at)
    assert files(layout.job_checkpoints("job")) == {}


def test_no_checkpoint_is_written_to_a_root_that_is_not_the_one_trained_in(layout: Layout) -> None:
    plan, known = planned(layout, "job"), storage.identified(layout)
    at = state.load(layout, plan, None, CPU)
    layout.root.rename(layout.root.with_name("elsewhere"))
    layout.make()
    with pytest.raises(StorageAway, match="another storage root"):
        save(known, plan, at)
    assert list(layout.checkpoints.iterdir()) == []
