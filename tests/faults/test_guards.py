"""Each guard is proved by breaking it: in a copy of the code without it, the test that is named for it fails."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.scene import REPOSITORY

README = (Path(__file__).parent / "README.md").read_text()


@dataclass(frozen=True)
class Guard:
    """Lines of the code, what is there without them, and the test that then fails."""

    name: str
    file: str
    lines: str
    without: str
    test: str


LEASE = "tests/integration/test_lease.py"
HOSTS = "tests/faults/test_lost_hosts.py"
REDIS = "tests/faults/test_lost_redis.py"
TORN = "tests/faults/test_torn_checkpoints.py"
GUARDS = (
    Guard(
        "the token check in renew", "gptjobs/scripts.py",
        "if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 'fenced' end\n", "",
        f"{LEASE}::test_nobody_but_the_holder_renews_or_finishes",
    ),
    Guard(
        "the nonce check in renew", "gptjobs/scripts.py",
        "if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[3] then return 'fenced' end\n", "",
        f"{LEASE}::test_nobody_but_the_holder_renews_or_finishes",
    ),
    Guard(
        "the serial check in claim", "gptjobs/scripts.py",
        "if redis.call('HGET', KEYS[1], 'serial') ~= ARGV[2] then return nil end\n", "",
        f"{LEASE}::test_a_doorbell_with_another_serial_is_ignored",
    ),
    Guard(
        "the beat check in reap", "gptjobs/scripts.py",
        "if redis.call('HGET', KEYS[1], 'beat') ~= ARGV[3] then return nil end\n", "",
        f"{LEASE}::test_a_beat_since_the_reaper_looked_saves_the_lease",
    ),
    Guard(
        "a token that exceeds those in the root", "gptjobs/scripts.py",
        "math.max(tonumber(redis.call('HGET', KEYS[1], 'token')), tonumber(ARGV[3])) + 1",
        "tonumber(redis.call('HGET', KEYS[1], 'token')) + 1",
        f"{LEASE}::test_a_token_exceeds_that_of_redis_and_every_one_in_the_root",
    ),
    Guard(
        "only the newest attempt puts a record back", "worker/lease.py",
        "if ended_otherwise or checkpoint.latest_token(self._layout, job) != self.lease.token:", "if False:",
        f"{REDIS}::test_an_old_attempt_that_wakes_in_a_flushed_redis_puts_nothing_back",
    ),
    Guard(
        "a reaper forgets after a pause of its own", "worker/rescue.py",
        "if now - looked > OWN_PAUSE_S:", "if False:",
        f"{HOSTS}::test_a_reaper_that_was_paused_for_longer_than_a_ttl_takes_nobodys_live_lease",
    ),
    Guard(
        "a beat is watched by monotonic time", "worker/rescue.py",
        "            now = time.monotonic()\n            if", "            now = time.time()\n            if",
        f"{HOSTS}::test_clocks_that_jump_ten_minutes_lose_no_lease_and_keep_none[600]",
    ),
    Guard(
        "the leash", "worker/child.py",
        "        os.killpg(os.getpgrp(), signal.SIGKILL)\n", "",
        f"{HOSTS}::test_a_killed_workers_job_trains_elsewhere_within_20_s[in mid-save]",
    ),
    Guard(
        "lineage", "gptjobs/checkpoint.py",
        "if each.manifest.token in until\n        and each.manifest.step <= until[each.manifest.token]\n        and",
        "if",
        f"{REDIS}::test_one_worker_cut_off_from_redis_works_in_vain_and_stops_when_it_is_back[0]",
    ),
    Guard(
        "a checkpoint is verified before it is gone on from", "gptjobs/checkpoint.py",
        "        if found is None:\n            return each\n", "        return each\n",
        f"{TORN}::test_a_spoilt_checkpoint_is_passed_over_for_the_one_before[a flipped bit]",
    ),
    Guard(
        "fsync of a manifest before it has its name", "gptjobs/durable.py",
        "            file.flush()\n            os.fsync(file.fileno())\n", "            file.flush()\n",
        f"{TORN}::test_a_trainer_killed_between_any_two_steps_of_a_checkpoints_writing_leaves_the_one_before_or_this_one",
    ),
    Guard(
        "fsync of a checkpoint before it has its name", "worker/trainer/commit.py",
        "            os.fsync(file.fileno())\n", "",
        f"{TORN}::test_a_trainer_killed_between_any_two_steps_of_a_checkpoints_writing_leaves_the_one_before_or_this_one",
    ),
    Guard(
        "fsync of the folder", "gptjobs/durable.py",
        "        os.fsync(descriptor)\n", "        pass\n",
        f"{TORN}::test_a_trainer_killed_between_any_two_steps_of_a_checkpoints_writing_leaves_the_one_before_or_this_one",
    ),
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("guard", GUARDS, ids=[each.name for each in GUARDS])
def test_without_a_guard_the_test_that_is_named_for_it_fails(tmp_path: Path, guard: Guard) -> None:
    for folder in ("gptjobs", "worker", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    broken = tmp_path / guard.file
    code = broken.read_text()
    assert code.count(guard.lines) == 1
    broken.write_text(code.replace(guard.lines, guard.without))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout


def test_the_list_of_guards_and_faults_names_tests_that_are_there() -> None:
    code = "".join(path.read_text() for path in REPOSITORY.glob("tests/*/test_*.py"))
    named = re.findall(r"`(test_\w+)`", README)
    assert [each for each in named if f"def {each}(" not in code] == []
    for guard in GUARDS:
        assert (REPOSITORY / guard.file).read_text().count(guard.lines) == 1, guard.name
        assert f"| {guard.name} | `{guard.test.rpartition('::')[2].partition('[')[0]}` |" in README
