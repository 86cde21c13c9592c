"""What a host is like: what is told, and that a question that cannot be answered costs no other answer."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from gptjobs.presence import Device
from gptjobs.settings import cores
from tests.conftest import eventually
from worker import conditions

BUSY = "while True: pass"
WAITS = "input()"


@contextmanager
def process(code: str, *arguments: str) -> Iterator[psutil.Process]:
    started = subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE)
    try:
        yield psutil.Process(started.pid)
    finally:
        started.kill()
        started.communicate()


def test_memory_load_and_the_busiest_other_processes_are_told_without_their_arguments() -> None:
    with process(WAITS) as trainer, process(BUSY, "--password", "hunter2") as busy:

        def told() -> Any:
            found = conditions.condition(trainer.pid)
            return busy.name() in [each["name"] for each in found.get("busiest", [])] and found

        host = eventually(told, 30)
    assert all(each["percent"] >= conditions.BUSY_PERCENT for each in host["busiest"])
    assert "hunter2" not in json.dumps(host, allow_nan=False)
    assert 0 < host["memory"]["available"] < host["memory"]["total"]
    assert host["trainer_memory"] > 0 and host["cores"] >= 1 and len(host["load"]) == 3
    assert f"busiest besides: {host['busiest'][0]['name']} " in conditions.in_words(host)


def test_the_trainer_and_its_children_are_none_of_the_others(tmp_path: Path) -> None:
    spinner = tmp_path / "spinner"
    spinner.symlink_to("/bin/sh")
    spins = f"import subprocess\nsubprocess.Popen([{str(spinner)!r}, '-c', 'while :; do :; done'])\n{WAITS}"
    with process(spins) as trainer, process(WAITS) as another:
        (child,) = eventually(trainer.children)
        try:
            eventually(lambda: "spinner" in [each["name"] for each in conditions._busiest(another.pid)], 30)
            assert "spinner" not in [each["name"] for each in conditions._busiest(trainer.pid)]
        finally:
            child.kill()


def test_memory_is_that_of_a_process_and_its_children_and_of_one_that_is_gone_unknown() -> None:
    grows = "kept = b'x' * (64 << 20)\ninput()"
    with process(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {grows!r}])\n{WAITS}") as trainer:
        eventually(lambda: (conditions.memory_of(trainer.pid) or 0) > 64 << 20, 30)
        for child in trainer.children():
            child.kill()
    assert conditions.memory_of(trainer.pid) is None


def test_pages_of_files_are_no_memory_of_a_trainer(tmp_path: Path) -> None:
    data = tmp_path / "data.bin"
    data.write_bytes(b"x" * (64 << 20))
    reads = "import mmap, sys\nf = open(sys.argv[1])\nm = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
    with process(f"{reads}sum(m[::4096])\n{WAITS}", str(data)) as trainer:
        eventually(lambda: trainer.memory_info().rss > 64 << 20, 30)
        assert (conditions.memory_of(trainer.pid) or 0) < 32 << 20


def test_a_host_that_answers_nothing_costs_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*asked: Any, **more: Any) -> Any:
        raise next(errors)

    errors = iter([*(PermissionError(), psutil.AccessDenied(), NotImplementedError(), ValueError(), KeyError()) * 9])
    for name in (
        "virtual_memory", "swap_memory", "getloadavg", "cpu_count", "cpu_freq", "process_iter", "sensors_temperatures",
        "sensors_battery", "Process",
    ):  # fmt: skip
        monkeypatch.setattr(psutil, name, refuses, raising=False)
    assert conditions.condition(1) == {}
    assert conditions.in_words({}) == "nothing else is busy"
    assert conditions.memory_of(1) is None


def answers(monkeypatch: pytest.MonkeyPatch, system: str, text: str) -> list[tuple[str, ...]]:
    """What is asked of commands, all of which answer so."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(conditions.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(conditions, "_answer", lambda *command: asked.append(command) or text)
    return asked


def test_what_throttles_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "0, 84, 100, 1200, 1980, 0x0000000000000044\n1, 45, [N/A], 1980, 1980, 0x0000000000000001\n"
    asked = answers(monkeypatch, "Linux", lines)
    hot, cool = conditions._gpus()
    assert "temperature.gpu" in asked[0][1]
    assert (hot["celsius"], hot["mhz"], hot["throttled"]) == (84, 1200, ["power cap", "heat (hardware)"])
    assert (cool["busy_percent"], cool["throttled"]) == (None, [])
    said = conditions.in_words({"gpus": [hot, cool]})
    assert "GPU 0 84 °C, throttled by power cap and heat (hardware); GPU 1 45 °C;" in said


def test_thermal_pressure_is_read_as_pmset_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "Note: No thermal warning level has been recorded\n"
        "CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Available_CPUs \t= 8\n\tCPU_Speed_Limit \t= 62\n"
    )
    assert answers(monkeypatch, "Darwin", text) == []
    found = conditions._thermal_pressure()
    assert found == {"CPU_Scheduler_Limit": 100, "CPU_Available_CPUs": 8, "CPU_Speed_Limit": 62}
    assert "CPU held to 62% for its heat" in conditions.in_words({"thermal": found})


def test_sensors_that_are_not_there_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = {"coretemp": (71.0, 93.24), "acpitz": (-273.2, 0.0, 255.0)}
    found = {name: [SimpleNamespace(current=each) for each in values] for name, values in chips.items()}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)
    assert conditions._temperatures() == {"coretemp": 93.2}
    assert conditions.in_words({"temperatures": {"coretemp": 93.2}}).startswith("93 °C")


def test_a_laptop_off_its_charger_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    battery = SimpleNamespace(percent=41.7, power_plugged=False)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert "on battery, 42%" in conditions.in_words({"battery": conditions._battery()})


def test_gpus_are_told_by_product_and_memory_each_once_and_one_that_is_not_told_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answers(monkeypatch, "Linux", "0, NVIDIA H200, 143771, 143000\n1, NVIDIA A30 MIG 1g.6gb, [N/A], [N/A]\n")
    first, second, third = conditions.devices(("cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:7"))
    assert len(asked) == 1 and "memory.total,memory.free" in asked[0][1]
    assert first == Device(name="cuda:0", product="NVIDIA H200", memory=143771 << 20, memory_free=143000 << 20)
    assert (second.product, second.memory, third) == ("NVIDIA A30 MIG 1g.6gb", None, Device(name="cuda:7"))


def test_a_cpu_is_told_by_its_cores_and_metal_by_its_chip_both_with_the_memory_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (cpu,) = conditions.devices(("cpu", "cpu"))
    assert cpu.product == f"{cores()} cores" and 0 < (cpu.memory_free or 0) < (cpu.memory or 0)
    answers(monkeypatch, "Darwin", "Apple M3 Max\n")
    (metal,) = conditions.devices(("mps",))
    assert (metal.product, metal.memory) == ("Apple M3 Max", cpu.memory)


def test_a_driver_that_does_not_answer_costs_no_error_and_leaves_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*command: str) -> str:
        raise subprocess.TimeoutExpired(command, conditions.ASK_LIMIT_S)

    monkeypatch.setattr(conditions, "_answer", hangs)
    assert conditions.devices(("cuda:0",)) == [Device(name="cuda:0")]
    assert conditions.devices(("mps",)) == [Device(name="mps")]
