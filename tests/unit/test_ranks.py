"""A job on several devices: real processes on one CPU, of tiny models, that train as one process does."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptjobs import checkpoint, durable, progress
from gptjobs.config import Plan, TrainConfig, settle
from gptjobs.errors import UsageError
from gptjobs.job import Cause
from gptjobs.layout import Layout
from gptjobs.progress import CheckpointWritten, Finished, Line, MicroBatch, Progress
from tests.conftest import eventually
from tests.unit.conftest import typed
from tests.unit.test_training import Ended, attempted, planned, tensors
from worker.supervisor import cause_of
from worker.trainer.device import of_rank
from worker.trainer.ranks import Ranks

GONE_S = 5.0
LIMIT_S = 120.0
ENDLESS = {"steps": 1_000_000, "eval_interval": 1_000_000, "checkpoint_interval": 1_000_000}


class Launched:
    """`python -m worker.trainer` of one attempt, as the supervisor starts it."""

    def __init__(self, layout: Layout, plan: Plan) -> None:
        self.layout, self.plan, self.lines = layout, plan, list[Line]()
        start = checkpoint.start_of_next_attempt(layout, plan.job, plan.parent)
        token = checkpoint.latest_token(layout, plan.job) + 1
        checkpoint.begin_attempt(layout, plan.job, token, start, worker="test", device="cpu")
        config = layout.config_file(plan.job)
        if not config.exists():
            durable.create(config, durable.to_json(plan.to_dict()))
        self.log = layout.root / f"{plan.job}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.trainer", str(config), "--attempt", str(token), "--leash"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    @property
    def ranks(self) -> dict[int, int]:
        """The processes of the ranks that live, by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().decode().split("\0")
                if str(self.layout.config_file(self.plan.job)) in words and "--rank" in words:
                    found[int(words[words.index("--rank") + 1])] = int(path.parent.name)
        return found

    def until_step(self, step: int) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            line = progress.decode(text)
            assert line is not None, text
            self.lines.append(line)
            if isinstance(line, Progress) and line.step >= step:
                return
        pytest.fail(self.log.read_text())

    def ended(self) -> Ended:
        """Its leash is held until it ends by itself."""
        assert self.process.stdout is not None
        self.lines += [line for text in self.process.stdout if (line := progress.decode(text))]
        self.process.wait(LIMIT_S)
        finished = [each for each in self.lines if isinstance(each, Finished)]
        assert finished, self.log.read_text()  # not always last: another rank may still have said what it begins
        counting = checkpoint.counting(self.layout, self.plan.job)
        return Ended(finished[-1], self.lines, counting[-1] if counting else None)


Launch = Callable[[Plan], Launched]


@pytest.fixture
def launch(layout: Layout) -> Iterator[Launch]:
    started: list[Launched] = []

    def begin(plan: Plan) -> Launched:
        started.append(Launched(layout, plan))
        return started[-1]

    yield begin
    for each in started:
        with each.process, suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)


def course(ended: Ended) -> dict[str, float]:
    """Every loss and norm that was reported, by its name and step."""
    names = ("train_loss", "val_loss", "grad_norm")
    values = {f"{name} at {each.step}": getattr(each, name) for each in ended.progress for name in names}
    return {name: value for name, value in values.items() if value is not None}


def assert_same_course(one: Ended, other: Ended) -> None:
    assert course(one) == pytest.approx(course(other), rel=1e-4)
    assert one.last.manifest.cursor == other.last.manifest.cursor
    assert one.last.manifest.tokens == other.last.manifest.tokens
    assert one.last.manifest.losses.eval_tokens == other.last.manifest.losses.eval_tokens


@given(st.integers(0, 1000), st.integers(1, 16))
def test_each_window_is_one_ranks_and_no_rank_has_two_more_than_another(count: int, size: int) -> None:
    parts = [Ranks(rank=rank, size=size).part(count) for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_windows_at_once_are_those_of_a_device() -> None:
    assert TrainConfig(batch_size=32, gpus=2).windows_at_once == 16
    assert TrainConfig(batch_size=5, gpus=3).windows_at_once == 2
    assert TrainConfig(batch_size=32, gpus=2, micro_batch=4).windows_at_once == 4


def test_a_batch_that_does_not_reach_for_all_devices_is_refused() -> None:
    with pytest.raises(UsageError, match="some would have no window"):
        settle(typed(data="a.md", gpus=3, batch_size=2))


def test_where_a_job_trained_is_not_inherited() -> None:
    parent = settle(typed(data="a.md", gpus=4, shard=True, steps=10))
    child = settle(typed(gpus=2), parent=parent, parent_step=5)
    assert (child.train.gpus, child.train.shard, child.origins["shard"]) == (2, False, "default")
    assert settle({}, parent=parent, parent_step=5).train.gpus == 1


def test_a_rank_has_its_own_of_the_attempts_devices() -> None:
    assert [of_rank("cuda:2,5", rank) for rank in (0, 1)] == ["cuda:2", "cuda:5"]
    assert [of_rank("cuda", 3), of_rank("cpu", 1)] == ["cuda:3", "cpu"]


def test_three_processes_and_two_after_them_train_as_one_does(layout: Layout, launch: Launch) -> None:
    """Uneven parts, micro-batches, dropout and an epoch's end among them."""
    values = {"batch_size": 5, "micro_batch": 1, "dropout": 0.2, "eval_tokens": 70, "steps": 6}
    alone = attempted(layout, planned(layout, "one", **values))
    three = launch(planned(layout, "three", **values, gpus=3)).ended()
    assert_same_course(three, alone)

    longer = attempted(layout, planned(layout, "one-on", alone.last, steps=4))
    two = launch(planned(layout, "two-on", three.last, steps=4, gpus=2)).ended()
    assert_same_course(two, longer)
    assert two.finished == Finished(outcome="finished", step=10)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_is_split_trains_as_a_whole_one_and_its_checkpoints_are_whole(
    layout: Layout, launch: Launch, tied: bool
) -> None:
    """From one process to two, each with a part of the model, and back."""
    values = {"tied": tied, "n_layer": 2, "micro_batch": 1, "dropout": 0.2, "eval_tokens": 70, "grad_clip": 0.5}
    first = attempted(layout, planned(layout, "first", **values))
    alone = attempted(layout, planned(layout, "one", first.last, steps=4))
    halves = launch(planned(layout, "two", first.last, steps=4, gpus=2, shard=True)).ended()
    assert_same_course(halves, alone)

    one, other = tensors(layout, halves.last), tensors(layout, alone.last)
    assert {name: each.shape for name, each in one.items()} == {name: each.shape for name, each in other.items()}
    for name, each in one.items():  # AdamW makes much of the rounding of gradients that are nearly nought
        torch.testing.assert_close(each, other[name], rtol=1e-3, atol=3e-5)
    back, on = (
        attempted(layout, planned(layout, f"{job}-on", last, steps=2))
        for job, last in (("two", halves.last), ("one", alone.last))
    )
    assert_same_course(back, on)


@pytest.mark.parametrize("values", [{}, {"gpus": 2, "batch_size": 5}])
def test_a_model_is_only_split_over_devices_that_share_a_batch_evenly(values: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--shard splits a model over several"):
        settle(typed(data="a.md", shard=True, **values))


def test_only_one_process_reports_and_writes(layout: Layout, launch: Launch) -> None:
    launched = launch(planned(layout, "job", gpus=2))
    ended = launched.ended()
    written = checkpoint.of_job(layout, "job")
    assert [each.manifest.step for each in written] == [3, 6]
    assert [each.step for each in ended.lines if isinstance(each, CheckpointWritten)] == [3, 6]
    assert [each.step for each in ended.progress] == [0, 1, 2, 3, 4, 5, 6]
    assert len([each for each in ended.lines if isinstance(each, Finished)]) == 1
    assert launched.log.read_text().count("checkpoint checkpoint_") == 2
    assert len(list(layout.job_checkpoints("job").iterdir())) == 4


@pytest.mark.parametrize("of_the_second_rank_alone", [False, True])
def test_a_request_to_stop_ends_all_processes_at_one_step_with_one_checkpoint(
    layout: Layout, launch: Launch, of_the_second_rank_alone: bool
) -> None:
    launched = launch(planned(layout, "job", **ENDLESS, gpus=2))
    launched.until_step(2)
    if of_the_second_rank_alone:
        os.kill(launched.ranks[1], signal.SIGTERM)
    else:
        launched.process.send_signal(signal.SIGTERM)
    ended = launched.ended()
    assert (ended.finished.outcome, launched.process.returncode) == ("stopped", 0)
    assert [each.manifest.step for each in checkpoint.of_job(layout, "job")] == [ended.finished.step]
    assert launched.ranks == {}


@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGKILL), (0, signal.SIGSEGV)])
def test_a_rank_that_dies_takes_all_with_it_and_its_end_is_told(
    layout: Layout, launch: Launch, rank: int, number: signal.Signals
) -> None:
    launched = launch(planned(layout, "job", **ENDLESS, gpus=2))
    launched.until_step(1)
    os.kill(launched.ranks[rank], number)
    assert launched.process.wait(GONE_S) == -number
    assert launched.ranks == {}
    assert f"rank {rank} of 2 ended: signal {number.name}" in launched.log.read_text()
    cause, _ = cause_of(launched.process.returncode, out_of_memory=False)
    assert cause is {signal.SIGKILL: Cause.KILLED, signal.SIGSEGV: Cause.SIGNAL}[number]


OTHERWISE = """
import sys
if sys.orig_argv[-4:-2] == ["--rank", "1"]:
    import torch
    from worker.trainer.model import GPT
    loss = GPT.loss
    def otherwise(model, tokens, *others):
        made = loss(model, tokens, *others)
        if torch.is_grad_enabled() and len(tokens) > {fit}:
            raise RuntimeError("{words}")
        return made
    GPT.loss = otherwise
"""


def second_rank(layout: Layout, monkeypatch: pytest.MonkeyPatch, *, fit: int, words: str) -> None:
    """Have rank 1 alone fail where more windows than `fit` are trained on at once."""
    (layout.root / "sitecustomize.py").write_text(OTHERWISE.format(fit=fit, words=words))
    monkeypatch.setenv("PYTHONPATH", str(layout.root), prepend=os.pathsep)


def test_an_error_of_one_rank_is_told_whichever_it_is(
    layout: Layout, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_rank(layout, monkeypatch, fit=0, words="of the second")
    launched = launch(planned(layout, "job", gpus=2))
    ended = launched.ended()
    assert (ended.finished.reason, ended.finished.exit_code) == ("RuntimeError: of the second", 1)
    assert launched.process.returncode == 1
    assert len([each for each in ended.lines if isinstance(each, Finished)]) == 1
    assert launched.ranks == {}


def test_a_rank_of_a_split_model_whose_memory_runs_out_ends_the_attempt(
    layout: Layout, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not halve its windows alone: the next attempt begins with half. The other rank only lost it."""
    second_rank(layout, monkeypatch, fit=1, words="DefaultCPUAllocator: no memory")
    launched = launch(planned(layout, "job", gpus=2, shard=True))
    ended = launched.ended()
    assert (ended.finished.reason, ended.finished.cause) == (
        "out of memory on cpu: DefaultCPUAllocator: no memory",
        Cause.OUT_OF_MEMORY,
    )
    assert [each for each in ended.lines if isinstance(each, MicroBatch | Finished)] == [ended.finished]
    assert launched.ranks == {}


def test_a_rank_whose_memory_runs_out_halves_alone(
    layout: Layout, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = attempted(layout, planned(layout, "one", dropout=0.2))
    second_rank(layout, monkeypatch, fit=1, words="DefaultCPUAllocator: no memory")
    ended = launch(planned(layout, "job", gpus=2, dropout=0.2)).ended()
    halved = [(each.before, each.windows) for each in ended.lines if isinstance(each, MicroBatch)]
    assert halved == [(2, 1)]
    assert_same_course(ended, alone)


def test_the_end_of_the_launcher_is_the_end_of_all_ranks(layout: Layout, launch: Launch) -> None:
    launched = launch(planned(layout, "job", **ENDLESS, gpus=2))
    launched.until_step(1)
    os.kill(launched.process.pid, signal.SIGKILL)
    eventually(lambda: not launched.ranks, GONE_S)


def test_the_launcher_minds_the_supervisors_leash(layout: Layout, launch: Launch) -> None:
    launched = launch(planned(layout, "job", **ENDLESS, gpus=2))
    launched.until_step(1)
    assert launched.process.stdin is not None
    launched.process.stdin.close()
    eventually(lambda: not launched.ranks, GONE_S)
    assert launched.process.wait(GONE_S) == -signal.SIGKILL
