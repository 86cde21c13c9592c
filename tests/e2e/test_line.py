"""The straight line, with real processes: submit, train, resume, and what is there afterwards."""

import json
import re
from functools import partial

import pytest

from gptjobs import broker, durable, planning
from gptjobs.job import JobSpec
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually

TINY = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512",
)  # fmt: skip


@pytest.fixture
def trained(gptjobs: Commands, workers: Workers) -> str:
    """A finished job with checkpoints at 20 and 40."""
    workers.start()
    job = gptjobs.ok(
        "submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "40", "--checkpoint-interval", "20",
        "--eval-interval", "20", "--name", "first",
    )  # fmt: skip
    gptjobs.ok("wait", job, "--timeout", "120")
    return job


def test_the_six_variables_of_older_scripts_resume_a_checkpoint(gptjobs: Commands, trained: str) -> None:
    path = gptjobs.layout.checkpoints / trained
    (checkpoint,) = (each for each in path.glob("*_step000020_*.pt"))
    resumed = gptjobs.ok(
        "submit",
        "resume",
        CHECKPOINT_PATH=str(checkpoint.relative_to(gptjobs.layout.root)),
        BATCH_SIZE="8",
        BLOCK_SIZE="16",
        LEARNING_RATE="1e-3",
        RESUME_STEPS="30",
        TRAINING_DATA_SOURCE="sources/text.md",
    )
    gptjobs.ok("wait", resumed, "--timeout", "120")

    (log,) = gptjobs.layout.logs.glob(f"resume_training_log_{resumed}_*.log")
    steps = [line for line in log.read_text().splitlines() if line.startswith("Step ")]
    assert re.match(r"Step 20: train loss \d\.\d+, val loss \d\.\d+, lr 0\.001, grad norm \d", steps[0])
    assert steps[-1].startswith("Step 50: train loss")
    assert all("tokens/s" in line and "left" in line for line in steps)
    written = sorted(each.name for each in (gptjobs.layout.checkpoints / resumed).glob("*.pt"))
    assert [re.sub(r"_\d{8}_\d{6}", "", each) for each in written] == [
        "checkpoint_gpt2_text_step000040.pt",
        "checkpoint_gpt2_text_step000050.pt",
    ]

    shown = json.loads(gptjobs.ok("show", resumed, "--json"))
    assert shown["state"] == "finished" and shown["step"] == shown["end_step"] == 50
    assert shown["config"]["train"]["schedule"] == "constant"
    assert shown["origins"]["batch_size"] == "BATCH_SIZE"
    assert shown["contract"]["rate_after"] == 1e-3
    outputs = gptjobs.layout.outputs / resumed
    metrics = [json.loads(line) for line in (outputs / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in metrics] == [20, 30, 40, 50]
    assert metrics[-1]["val_loss"] < metrics[0]["val_loss"]
    assert "BATCH_SIZE" in (outputs / "summary.md").read_text()
    assert (outputs / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_job_is_resumed_by_best_last_and_step(gptjobs: Commands, trained: str) -> None:
    for reference, step in (("first@20", 20), ("first@last", 40), (f"{trained[:6]}@best", None), ("@last", 40)):
        made = json.loads(gptjobs.ok("submit", "resume", "--from", reference, "--dry-run", "--json"))
        assert step is None or made["contract"]["step"] == step
    assert len(json.loads(gptjobs.ok("list", "--json"))["jobs"]) == 1


def test_a_client_without_the_root_has_its_files_checked_by_the_worker(
    gptjobs: Commands, workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workers.start()
    laptop = str(tmp_path_factory.mktemp("laptop"))
    job = gptjobs.ok(
        "submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "4", GPTJOBS_ROOT=laptop
    )  # fmt: skip
    gptjobs.ok("wait", job, "--timeout", "120", GPTJOBS_ROOT=laptop)
    missing = gptjobs.ok("submit", "train", "-q", *TINY, "--data", "sources/none.md", GPTJOBS_ROOT=laptop)
    ended = gptjobs("wait", missing, "--timeout", "120", GPTJOBS_ROOT=laptop)
    assert ended.returncode == 1
    assert "there is no data file" in ended.stderr
    assert (gptjobs.layout.outputs / job / "job.json").is_file()


def test_logs_follow_a_job_to_its_end_and_take_its_exit_code(gptjobs: Commands, workers: Workers) -> None:
    workers.start()
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "10")
    followed = gptjobs("logs", "-f", job)
    assert followed.returncode == 0
    assert "Step 10: train loss" in followed.stdout
    assert followed.stdout.rstrip().endswith("finished")


def test_a_running_job_that_is_cancelled_writes_a_checkpoint_first(gptjobs: Commands, workers: Workers) -> None:
    workers.start()
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "100000")
    eventually(lambda: json.loads(gptjobs.ok("show", job, "--json"))["step"])
    gptjobs.ok("cancel", job)
    ended = gptjobs("wait", job, "--timeout", "60")
    assert ended.returncode == 10
    shown = json.loads(gptjobs.ok("show", job, "--json"))
    assert shown["state"] == "cancelled"
    assert [each["step"] for each in shown["checkpoints"]][-1] >= shown["step"] > 0


def test_celerys_revoke_cancels_as_gptjobs_cancel_does(
    gptjobs: Commands, workers: Workers, redis_url: str, store: Store
) -> None:
    workers.start()
    running, waiting = (
        gptjobs.ok("submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "100000") for _ in range(2)
    )
    eventually(lambda: store.get(running).progress.get("step"))
    revoke = partial(
        broker.connect(redis_url).control.revoke,
        terminate=True, reply=True, timeout=30, destination=[each.name for each in store.workers()],
    )  # fmt: skip
    (said,) = revoke([running, waiting])
    assert list(said.values()) == [{"ok": {running: "cancelling", waiting: "cancelled"}}]
    assert gptjobs("wait", running, waiting, "--timeout", "60").returncode == 10
    for job in (running, waiting):
        assert (gptjobs.layout.outputs / job / "cancel.json").is_file()
        assert json.loads((gptjobs.layout.outputs / job / "outcome.json").read_bytes())["state"] == "cancelled"
    shown = json.loads(gptjobs.ok("show", running, "--json"))
    assert [each["step"] for each in shown["checkpoints"]][-1] >= shown["step"] > 0
    (said,) = revoke("nothing")
    assert list(said.values()) == [{"error": "Redis has no job nothing"}]


def test_data_that_goes_away_once_a_job_is_planned_fails_it_and_says_so(gptjobs: Commands, workers: Workers) -> None:
    layout = gptjobs.layout
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "4")
    plan, _ = planning.plan(layout, JobSpec.from_dict(json.loads(layout.job_file(job).read_bytes())))
    durable.create(layout.config_file(job), durable.to_json(plan.to_dict()))
    (layout.root / "sources" / "text.md").unlink()
    workers.start()
    done = gptjobs("wait", job, "--timeout", "60")
    assert done.returncode == 1
    assert "the data sources/text.md is gone from the storage root" in done.stdout
