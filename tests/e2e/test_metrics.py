"""What Prometheus gets of real workers and of a real Flower, while real jobs train."""

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gptjobs import metrics
from gptjobs.local import _free_port
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_flower import Flower, submit
from tests.integration.test_errors import assert_error

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""values by name and labels"""


def read(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("gptjobs_")
    }


def of(series: Series, metric: str, /, **labels: str) -> list[float]:
    """The values of the series of that metric that have these labels."""
    wanted = labels.items()
    return [value for (each, had), value in series.items() if each == metric and wanted <= dict(had).items()]


class Scraped:
    """A worker's metrics, on a port that it found free."""

    def __init__(self, workers: Workers, name: str) -> None:
        self.url = eventually(lambda: re.search(r"metrics are at (http://127.0.0.1:\d+/metrics)", workers.log(name)))[1]

    def __call__(self) -> Series:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            return read(answer.read().decode())


@pytest.fixture
def flower(gptjobs: Commands, tmp_path: Path) -> Iterator[Flower]:
    made = Flower(gptjobs, tmp_path / "flower.log")
    yield made
    made.stop()


def test_a_worker_and_flower_tell_the_same_of_a_job_that_trains(
    gptjobs: Commands, workers: Workers, flower: Flower
) -> None:
    workers.start("measured", 1, "--metrics", "0")
    worker = Scraped(workers, "measured")
    job = submit(gptjobs, "trains")
    submit(gptjobs, "waits", "--device", "cuda")
    here = {"job_id": job, "name": "trains"}

    def flower_now() -> Series:
        return read(flower.ask("/metrics")[1])

    for scrape in (worker, flower_now):
        eventually(lambda scrape=scrape: of(scrape(), "gptjobs_job_checkpoint_stall_seconds", **here))
        (first,) = eventually(lambda scrape=scrape: of(scrape(), "gptjobs_job_step", **here))
        eventually(lambda scrape=scrape, first=first: of(scrape(), "gptjobs_job_step", **here)[0] > first)
        seen = scrape()
        of_job = {metric.name for metric in metrics.METRICS if metric.sources == (metrics.FLOWER, metrics.WORKER)}
        told = {name for name, labels in seen if ("job_id", job) in labels}
        assert told == of_job
        (train_loss,) = of(seen, "gptjobs_job_train_loss", **here)
        assert 0 < train_loss < 6
        assert of(seen, "gptjobs_job_end_step", **here) == [50_000]
        assert of(seen, "gptjobs_job_attempt", **here) == [1]
        assert of(seen, "gptjobs_job_checkpoint_interval_steps", **here) == [50]
        assert of(seen, "gptjobs_job_checkpoint_step", **here)[0] % 50 == 0
        assert of(seen, "gptjobs_job_tokens_per_second", **here)[0] > 0
        assert of(seen, "gptjobs_job_lease_age_seconds", **here)[0] < 10
        assert of(seen, "gptjobs_job_alerts_total", **here, alert="spike") == [0]
        assert of(seen, "gptjobs_job_info", **here, state="running", device="cpu") == [1]

    of_worker, of_flower = worker(), flower_now()
    assert of(of_worker, "gptjobs_worker_slots_busy") == of(of_worker, "gptjobs_worker_slots") == [1]
    assert of(of_worker, "gptjobs_worker_checkpoints_total")[0] >= 1
    assert of(of_worker, "gptjobs_worker_root_free_bytes")[0] > 0
    assert of(of_worker, "gptjobs_worker_redis_up") == of(of_flower, "gptjobs_redis_up") == [1]
    assert of(of_flower, "gptjobs_jobs", state="running", queue="any") == [1]
    assert of(of_flower, "gptjobs_jobs", state="queued", queue="cuda") == [1]
    assert of(of_flower, "gptjobs_queue_workers", queue="cuda") == [0]
    eventually(lambda: of(flower_now(), "gptjobs_queue_workers", queue="cpu") == [1])
    assert of(flower_now(), "gptjobs_slots_busy", device="cpu") == [1]

    gptjobs.ok("cancel", job)
    eventually(lambda: of(worker(), "gptjobs_worker_attempts_ended_total", end="cancelled") == [1])
    assert of(worker(), "gptjobs_job_step") == []
    eventually(lambda: of(flower_now(), "gptjobs_job_info", **here, state="cancelled") == [1])
    assert of(flower_now(), "gptjobs_job_lease_age_seconds") == []


def test_a_lost_worker_is_told_by_who_takes_its_job_over_and_by_the_jobs_restarts(
    gptjobs: Commands, workers: Workers, flower: Flower
) -> None:
    first = workers.start("first")
    job = submit(gptjobs, "survivor")
    eventually(lambda: of(read(flower.ask("/metrics")[1]), "gptjobs_job_step", job_id=job))
    workers.start("second", 1, "--metrics", "0")
    second = Scraped(workers, "second")
    assert of(second(), "gptjobs_worker_leases_reaped_total") == [0]
    first.kill()
    eventually(lambda: of(second(), "gptjobs_job_step", job_id=job))
    assert of(second(), "gptjobs_worker_leases_reaped_total") == [1]
    for scrape in (second, lambda: read(flower.ask("/metrics")[1])):
        eventually(
            lambda scrape=scrape: of(scrape(), "gptjobs_job_restarts_total", job_id=job, cause="lost host") == [1]
        )
        assert of(scrape(), "gptjobs_job_attempt", job_id=job) == [2]


def test_a_port_that_is_taken_or_none_ends_a_worker_with_what_to_type(gptjobs: Commands, workers: Workers) -> None:
    workers.start("has-it", 1, "--metrics", str(port := _free_port()))
    done = gptjobs("worker", "start", "--device", "cpu", "--name", "late", "--metrics", str(port))
    assert_error(
        done, 2, f"metrics cannot be served on 127.0.0.1:{port}: Address already in use", hint="--metrics PORT"
    )
    done = gptjobs("worker", "start", "--device", "cpu", "--metrics", "here")
    assert_error(done, 2, "'here' is no [HOST:]PORT", hint="--metrics 5556")
