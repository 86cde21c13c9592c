"""`python -m bench.sweep`: what the queue adds to a search, what ASHA saves of it, and Ray Tune's beside ours.

    queue   16 trials of `nano` by a sweep, from its submission to its summary, against the bare trainer started 16
            times in a row with the same configs; and with two slots against two bare trainers at a time. At most 5%
            are to be added.
    asha    the same grid whole and with `--pruner asha`: the best loss of each and the steps that each trained, over
            five seeds. At most 0.01 nats worse for at most 40% of the steps.
    ray     the same search, with ASHA, by Ray Tune on the same trainer, `--ray PYTHON` (an interpreter with ray[tune]).

Each is done in rounds, in an order drawn by chance, by the same trainers with the same threads.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import ours, report
from gptjobs import durable, planning, trials
from gptjobs.data import tokens
from gptjobs.layout import Layout
from gptjobs.study import FACTOR
from gptjobs.sweep import UNITS, Sweep, Trial
from gptjobs.trials import Tried
from tests.conftest import Commands, Workers, english, eventually, start_server

PARTS = ("queue", "asha", "ray")
RATES = "1e-4,3e-4,6e-4,1e-3,2e-3,4e-3,1e-2,3e-2"
DROPOUTS = "0,0.1"
TRIALS = 16
SEEDS = 5
LIMIT_S = 1800.0
OPTIONS = (
    "--model", "nano", "--data", "sources/text.md", "--batch-size", "12", "--block-size", "64", "--compile", "off",
    "--precision", "float32", "--grid", f"learning_rate={RATES}", "--grid", f"dropout={DROPOUTS}",
)  # fmt: skip
UNPRUNED = ("--eval-interval", "1000000")
PRUNED = ("--pruner", "asha", "--eval-tokens", "4096")
RAY = Path(__file__).with_name("ray_sweep.py")


class Scene:
    """A root with a text, a server, and a worker with so many slots."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self.steps = folder, steps
        self.layout = Layout(folder / "root")
        self.layout.make()
        (self.layout.root / "sources").mkdir()
        source = self.layout.root / "sources" / "text.md"
        source.write_text(english(200_000))
        tokens.prepare(self.layout, source, tokens.digest_of(source), "bytes")
        self._server, url = start_server(folder)
        self.gptjobs = Commands(self.layout, url)
        self._workers = Workers(self.gptjobs, folder)

    def close(self) -> None:
        self._workers.stop()
        self._server.kill()
        self._server.wait()

    @contextmanager
    def worker(self, slots: int) -> Iterator[None]:
        self.gptjobs.environment["OMP_NUM_THREADS"] = str(threads(slots))
        process = self._workers.start(slots=slots)
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def sweep(self, *options: str) -> tuple[float, list[Tried]]:
        """Seconds from the submission to the summary, and what became of the trials."""
        began = time.monotonic()
        id = self.gptjobs.ok("submit", "sweep", "-q", *OPTIONS, "--steps", str(self.steps), *options)
        eventually(self.layout.summary_file(id).exists, LIMIT_S)
        return time.monotonic() - began, trials.read(self.layout, id)

    def configs(self, *options: str) -> list[Path]:
        """The `config.json` of each trial of such a sweep, in a root of their own."""
        words = self.gptjobs.ok(
            "submit", "sweep", "--json", "--dry-run", *OPTIONS, "--steps", str(self.steps), *options
        )  # fmt: skip
        made = Sweep.from_dict(json.loads(words)["sweep"])
        return [self._config(made, number) for number in range(TRIALS)]

    def _config(self, made: Sweep, number: int) -> Path:
        spec = made.job(Trial(number=number, params=made.point(number)), None, 0)
        plan, _ = planning.plan(self.layout, spec)
        path = self.layout.config_file(spec.id)
        durable.make_folder(path.parent)
        durable.write(path, durable.to_json(plan.to_dict()))
        return path


def threads(slots: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // slots)


def bare(scene: Scene, at_once: int, *options: str) -> float:
    """Seconds that the trainers alone take, so many at a time."""
    waiting, running = scene.configs(*options), list["subprocess.Popen[bytes]"]()
    environment = ours.environment(threads(at_once))
    began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < at_once:
            command = ours.command(waiting.pop(0), "cpu")
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet))
        running = [each for each in running if each.poll() is None]
        time.sleep(0.02)
    return time.monotonic() - began


def measure_queue(scene: Scene, rounds: int) -> str:
    taken: dict[tuple[int, str], list[float]] = {}

    def by_queue(slots: int) -> float:
        with scene.worker(slots):
            return scene.sweep(*UNPRUNED)[0]

    ways: dict[tuple[int, str], Callable[[], float]] = {
        (slots, name): way
        for slots in (1, 2)
        for name, way in (
            ("bare", lambda slots=slots: bare(scene, slots, *UNPRUNED)),
            ("queue", lambda slots=slots: by_queue(slots)),
        )
    }
    for _ in range(rounds):
        for key in random.sample(list(ways), len(ways)):
            taken.setdefault(key, []).append(ways[key]())
            tell(f"{key[1]}, {key[0]} at a time: {taken[key][-1]:.1f} s")
    rows = []
    for slots in (1, 2):
        without, through = taken[slots, "bare"], taken[slots, "queue"]
        ratios = [one / other for one, other in zip(through, without, strict=True)]
        rows.append([
            str(slots), f"{statistics.median(without):.1f}", f"{statistics.median(through):.1f}",
            f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}",
        ])  # fmt: skip
    return report.table(["at a time", "bare trainers, s", "a sweep, s", "ratio", "least to most"], rows)


def measure_asha(scene: Scene, seeds: int) -> str:
    rows = []
    for seed in range(1, seeds + 1):
        with scene.worker(2):
            _, whole = scene.sweep(*PRUNED[2:], "--seed", str(seed))
            _, pruned = scene.sweep(*PRUNED, "--seed", str(seed))
        best, found = _best(whole), _best(pruned)
        part = sum(_steps(each) for each in pruned) / sum(_steps(each) for each in whole)
        rows.append([str(seed), f"{best:.4f}", f"{found:.4f}", f"{found - best:+.4f}", f"{part:.0%}"])
        tell(" ".join(rows[-1]))
    return report.table(["seed", "best of the grid", "ASHA's best", "above", "of its steps"], rows)


def _best(tried: Sequence[Tried]) -> float:
    last = trials.rank(tried).ranked[0].last
    assert last is not None
    return last.val_loss


def _steps(tried: Tried) -> int:
    return tried.last.step if tried.last else 0


def measure_ray(scene: Scene, python: str, rounds: int) -> str:
    taken: dict[str, list[float]] = {"ours": [], "ray": []}
    best: dict[str, float] = {}

    def ours_() -> float:
        with scene.worker(2):
            seconds, tried = scene.sweep(*PRUNED)
        best["ours"] = _best(tried)
        return seconds

    def rays() -> float:
        configs = scene.configs(*PRUNED)
        request = {"configs": [*map(str, configs)], "trainer": ours.command(Path("CONFIG"), "cpu"), "at_once": 2}
        request |= {"units": UNITS, "factor": FACTOR}
        environment = {**ours.environment(threads(2)), "PYTHONPATH": ""}
        done = subprocess.run(
            [python, str(RAY)], input=json.dumps({**request, "environment": ours.environment(threads(2))}), text=True,
            capture_output=True, env=environment, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        answer = json.loads(done.stdout.splitlines()[-1])
        best["ray"] = answer["loss"]
        return float(answer["seconds"])

    for _ in range(rounds):
        for name, way in random.sample([("ours", ours_), ("ray", rays)], 2):
            taken[name].append(way())
            tell(f"{name}: {taken[name][-1]:.1f} s, best loss {best[name]:.4f}")
    ratios = [one / other for one, other in zip(taken["ours"], taken["ray"], strict=True)]
    row = [
        f"{statistics.median(taken['ray']):.1f}", f"{statistics.median(taken['ours']):.1f}",
        f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}",
        f"{best['ray']:.4f}", f"{best['ours']:.4f}",
    ]  # fmt: skip
    return report.table(["Ray Tune, s", "gptjobs, s", "ratio", "least to most", "Ray's best", "ours"], [row])


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; several times too")
    parser.add_argument("--steps", type=int, default=160, help="of a trial")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--ray", metavar="PYTHON", help="an interpreter with ray[tune], for that part")
    asked = parser.parse_args()
    wanted = asked.part or [each for each in PARTS if each != "ray" or asked.ray]
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), asked.steps)
        try:
            tables = []
            if "queue" in wanted:
                tables.append(measure_queue(scene, asked.rounds))
            if "asha" in wanted:
                tables.append(measure_asha(scene, asked.seeds))
            if "ray" in wanted:
                tables.append(measure_ray(scene, asked.ray, asked.rounds))
        finally:
            scene.close()
    print(report.machine(threads(1)))
    for each in tables:
        print(f"\n{each}")


if __name__ == "__main__":
    main()
