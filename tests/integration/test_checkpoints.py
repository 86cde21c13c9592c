"""`gptjobs checkpoints` as users type it, on checkpoints of the real trainer."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from gptjobs import checkpoint, record
from gptjobs.checkpoint import Checkpoint
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from tests.conftest import Commands
from tests.unit.conftest import NOON
from tests.unit.test_training import attempted, planned


@pytest.fixture
def trained(layout: Layout) -> list[Checkpoint]:
    """The job `first`, with checkpoints at 3 and 6, and `second`, which went on from the last."""
    for job in ("first", "second"):
        record.write_spec(layout, JobSpec(id=job, kind="train", submitted_at=NOON))
    last = attempted(layout, planned(layout, "first")).last
    attempted(layout, planned(layout, "second", last, steps=3, learning_rate=1e-3))
    for job in ("first", "second"):
        record.write_outcome(layout, job, Outcome(state=JobState.FINISHED, reason="finished"), 1)
    return [*checkpoint.counting(layout, "first"), *checkpoint.counting(layout, "second")]


def statuses(gptjobs: Commands) -> dict[str, str]:
    listed = json.loads(gptjobs.ok("checkpoints", "list", "--json"))["checkpoints"]
    return {f"{each['job']}@{each['step']}": each["status"] + ", tainted" * bool(each["tainted_by"]) for each in listed}


def poison(layout: Layout, found: Checkpoint) -> None:
    """Let a weight be no number, in a file that is what its manifest says."""
    path = layout.path(found.name)
    content = torch.load(path, weights_only=True)
    content["model"]["transformer.ln_f.weight"][3] = torch.nan
    torch.save(content, path)
    manifest = json.loads(checkpoint.manifest_path(path).read_text())
    manifest |= {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    checkpoint.manifest_path(path).write_text(json.dumps(manifest))


def test_verify_finds_what_is_torn_changed_or_no_number_and_can_put_it_away(
    gptjobs: Commands, layout: Layout, trained: list[Checkpoint]
) -> None:
    assert json.loads(gptjobs.ok("checkpoints", "verify", "--json")) == {"schema": 1, "verified": 3, "faults": {}}
    poison(layout, trained[0])
    changed = layout.path(trained[1].name)
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    torn = layout.path(trained[2].name)
    torn.write_bytes(torn.read_bytes()[:-100])
    ended = gptjobs("checkpoints", "verify", "--quarantine")
    assert ended.returncode == 3
    faults = [line.partition(": ")[2] for line in ended.stdout.splitlines()]
    assert faults[0] == "transformer.ln_f.weight has values that are not finite"
    assert faults[1] == "its SHA-256 is not that of its manifest"
    assert faults[2].startswith("it has ")
    assert set(statuses(gptjobs).values()) <= {"quarantined", "quarantined, tainted"}
    assert "0 checkpoints are whole" in gptjobs("checkpoints", "verify").stderr


def test_a_quarantined_checkpoint_is_passed_over_refused_and_shown_with_what_descends_from_it(
    gptjobs: Commands, trained: list[Checkpoint]
) -> None:
    gptjobs.ok("checkpoints", "quarantine", "first@6..", "--reason", "spike at step 5")
    assert statuses(gptjobs) == {"first@3": "good", "first@6": "quarantined", "second@9": "good, tainted"}
    best = json.loads(gptjobs.ok("submit", "resume", "--from", "first@best", "--dry-run", "--json", "--steps", "3"))
    assert best["contract"]["step"] == 3
    refused = gptjobs("submit", "resume", "--from", "first@6", "--dry-run", "--steps", "3")
    assert refused.returncode == 3 and "is quarantined: spike at step 5" in refused.stderr
    allowed = gptjobs("submit", "resume", "--from", "first@6", "--dry-run", "--steps", "3", "--allow-quarantined")
    assert allowed.returncode == 0
    tainted = gptjobs("submit", "resume", "--from", "second@last", "--dry-run", "--steps", "3")
    assert tainted.returncode == 0 and "note: it descends from" in tainted.stderr
    shown = gptjobs.ok("checkpoints", "show", "second@last")
    assert "tainted: it descends from" in shown
    assert "learning_rate  0.01 → 0.001" in shown
    gptjobs.ok("checkpoints", "release", "first@6")
    assert set(statuses(gptjobs).values()) == {"good"}


def test_prune_shows_what_would_go_and_asks_before_it_goes(gptjobs: Commands, trained: list[Checkpoint]) -> None:
    keep = ("--keep-best", "0", "--keep-last", "1")
    shown = json.loads(gptjobs.ok("checkpoints", "prune", *keep, "--dry-run", "--json"))
    assert shown["would_delete"] == [trained[0].name] and shown["bytes"] == trained[0].manifest.size
    asked = gptjobs("checkpoints", "prune", *keep)
    assert asked.returncode == 2 and "--yes" in asked.stderr
    assert len(statuses(gptjobs)) == 3
    gptjobs.ok("checkpoints", "prune", *keep, "--yes")
    assert set(statuses(gptjobs)) == {"first@6", "second@9"}
    assert not Path(gptjobs.layout.root / trained[0].name).exists()
