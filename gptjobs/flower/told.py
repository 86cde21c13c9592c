"""What the Runs tab fetches: pages of the list of jobs, all that is on record of one, sweeps, comparisons."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptjobs import checkpoint, comparison, contract, findings, picture, record, sweeping, trials
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import MODEL_FIELDS, Plan
from gptjobs.contract import value_in_words
from gptjobs.errors import GptjobsError, UsageError
from gptjobs.flower.board import Board, Row
from gptjobs.flower.curves import AXES, KEPT, Curves
from gptjobs.layout import Layout
from gptjobs.record import PastAttempt
from gptjobs.sweep import Sweep
from gptjobs.verdict import CONFIDENCE

ROWS = 50
"""on a page of the list"""
SORTED_BY = (
    "name", "state", "step", "train_loss", "val_loss", "tokens_per_s", "eta_s", "device", "alerts", "seen_at",
    "submitted_at",
)  # fmt: skip
_SEARCHED = ("id", "name", "state", "sweep", "device", "worker", "reason", "kind")
_LOG_LINES = 200
_LOG_BYTES = 1 << 16
_GENERATIONS = 20
"""of checkpoints that a job descends from"""
_APART = 0.06
"""of an axis's height, between what is written at it"""


def page(board: Board, words: str, state: str, by: str, *, descending: bool, number: int) -> dict[str, Any]:
    """A page of the jobs that have all `words`, and how many there are in each state; newest first unless sorted."""
    wanted = words.lower().split()
    found = [row for row in board.rows.values() if not wanted or _has(row, wanted)]
    counts = Counter(row["state"] for row in found)
    found = [row for row in found if not state or row["state"] == state]
    if by in SORTED_BY and (by, descending) != ("submitted_at", True):
        known = [row for row in found if row[by] is not None]
        known.sort(key=lambda row: row[by], reverse=descending)
        found = known + [row for row in found if row[by] is None]
    pages = max(1, -(-len(found) // ROWS))
    number = min(max(1, number), pages)
    rows = found[(number - 1) * ROWS : number * ROWS]
    return {"jobs": rows, "counts": counts, "page": number, "pages": pages, "found": len(found), "all": len(board.rows)}


def _has(row: Row, words: Sequence[str]) -> bool:
    text = " ".join(str(row[name]) for name in _SEARCHED if row[name]).lower()
    return all(each in text for each in words)


def record_of(layout: Layout, board: Board, job: str) -> dict[str, Any]:
    """What does not change with every step: contract, config with origins, attempts, checkpoints, lineage, the log."""
    spec, plan = board.spec(job), record.read_plan(layout, job)
    checkpoints = checkpoint.listed(layout, job)
    outcome = record.read_outcome(layout, job)
    return {
        "request": {
            "from": spec.parent,
            "overrides": [
                {"name": name, "value": value_in_words(given.value), "origin": given.origin}
                for name, given in spec.overrides.items()
            ],
        },
        "hint": outcome.hint if outcome else None,
        "contract": _contract(layout, plan),
        "config": _config(plan),
        "data": {"name": plan.data_name, "digest": plan.data_digest} if plan else None,
        "attempts": [_attempt(each) for each in board.attempts(job)],
        "checkpoints": _checkpoints(checkpoints),
        "alerts": [
            {"step": alert["step"], "name": alert["name"], "reason": alert["reason"]}
            for each in board.attempts(job)
            for alert in each.alerts
        ],
        "ancestors": _ancestors(layout, plan),
        "children": [{name: row[name] for name in ("id", "name", "state")} for row in board.children(job)],
        "log": log_tail(layout.log_files(job)[-1:]),
    }


def _contract(layout: Layout, plan: Plan | None) -> dict[str, Any] | None:
    if plan is None or plan.parent is None:
        return None
    try:
        made = contract.contract(plan, checkpoint.read(layout, plan.parent))
    except GptjobsError as error:  # the checkpoint that it began from is gone
        return {"missing": error.message}
    changes = [
        {**vars(each), "before": value_in_words(each.before), "after": value_in_words(each.after)}
        for each in made.changes
    ]
    return {**made.to_dict(), "changes": changes}


def _config(plan: Plan | None) -> list[dict[str, Any]]:
    if plan is None:
        return []
    settled = plan.settled.to_dict()
    return [
        {
            "name": name,
            "value": value_in_words(value),
            "origin": plan.settled.origins[name],
            "of": "model" if name in MODEL_FIELDS else "training",
        }
        for name, value in {**settled["model"], **settled["train"]}.items()
    ]


def _attempt(past: PastAttempt) -> dict[str, Any]:
    attempt = past.attempt
    return {
        "token": attempt.token,
        "worker": attempt.worker,
        "device": attempt.device,
        "began_at": attempt.began_at,
        "start": attempt.start,
        "start_step": attempt.start_step,
        "step": past.progress.get("step"),
        "ended": str(past.ended) if past.ended else None,
    }


def _checkpoints(found: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    best = checkpoint.best([each for each in found if each.manifest.status == checkpoint.GOOD])
    return [
        {
            "name": each.name,
            "step": each.manifest.step,
            "tokens": each.manifest.tokens,
            "val_loss": each.manifest.losses.val_loss,
            "size": each.manifest.size,
            "status": each.manifest.status,
            "is_best": each is best,
        }
        for each in found
    ]


def _ancestors(layout: Layout, plan: Plan | None) -> list[dict[str, Any]]:
    """The checkpoints that it descends from, one of each job, the nearest first."""
    found: list[dict[str, Any]] = []
    name = plan.parent if plan else None
    while name is not None and len(found) < _GENERATIONS:
        entry: dict[str, Any] = {"checkpoint": name, "job": None, "step": None}
        found.append(entry)
        name = None
        with suppress(GptjobsError):  # pruned, or moved away: the lineage is known so far
            manifest = checkpoint.read(layout, entry["checkpoint"]).manifest
            entry |= {"job": manifest.job, "step": manifest.step}
            before = record.read_plan(layout, manifest.job) if manifest.job else None
            name = before.parent if before else None
    return found


def log_tail(paths: Sequence[Path]) -> dict[str, Any] | None:
    """The last lines of a log."""
    for path in paths:
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return {"file": path.name, "lines": lines[-_LOG_LINES:]}
    return None


def sweeps(layout: Layout, board: Board) -> dict[str, Any]:
    newest_first = sorted(board.sweeps.values(), key=lambda each: each.submitted_at, reverse=True)
    return {"sweeps": [sweeping.overview(layout, each, trials.read(layout, each.id)) for each in newest_first]}


def sweep_of(layout: Layout, sweep: Sweep) -> dict[str, Any]:
    """A sweep's trials, best first, as a table and as parallel coordinates, and its verdict."""
    tried = trials.read(layout, sweep.id)
    ranking = trials.rank(tried)
    rows, verdict = findings.rows(ranking), findings.verdict_of(layout, sweep, ranking)
    names = findings.hyperparameters(rows)
    shown = [{**each, "params": [value_in_words(each["params"].get(name)) for name in names]} for each in rows]
    return {
        **sweeping.overview(layout, sweep, tried),
        "names": names,
        "rows": shown,
        "verdict": [str(each) for each in verdict],
        "basis": findings.basis(verdict, CONFIDENCE) if verdict else None,
        **_parallel(rows, names),
    }


def _parallel(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The axes with what is written at them, and a line of heights (0 to 1) for each trial with a loss."""
    lined = [each for each in rows if each["val_loss"] is not None]
    axes, heights = [], []
    for name in [*names, "val_loss"]:
        values = [each["val_loss"] if name == "val_loss" else each["params"].get(name) for each in lined]
        scale = picture.scale(values)
        axes.append({"name": name, "ticks": _ticks(name, scale)})
        heights.append([round(scale[value], 4) for value in values])
    lines = [{"trial": each["trial"], "job": each["job"], "rank": each["rank"]} for each in lined]
    return {
        "axes": axes,
        "lines": [{**line, "heights": of} for line, of in zip(lines, zip(*heights, strict=True), strict=True)],
    }


def _ticks(name: str, scale: Mapping[Any, float]) -> list[dict[str, Any]]:
    """As many of an axis's values as can be written one above the other, the lowest and the highest among them."""
    found: list[dict[str, Any]] = []
    top = max(scale.values(), default=0.0)
    for value, height in scale.items():
        fits = not found or height - found[-1]["height"] >= _APART
        if fits and (height == top or top - height >= _APART or not found):
            words = f"{value:.4f}" if name == "val_loss" else picture.tick(value)
            found.append({"height": height, "words": words})
    return found


def comparison_of(layout: Layout, board: Board, curves: Curves, jobs: Sequence[str], axis: str) -> dict[str, Any]:
    """Up to eight jobs' curves, what they have otherwise, and whether their losses differ."""
    if len(jobs) > KEPT:
        raise UsageError(f"at most {KEPT} jobs are compared at once, not {len(jobs)}")
    rows = [board.row(each) for each in jobs]
    shown = [{"job": row, "curve": curves.of(row["id"], axis)["curve"]} for row in rows]
    found = []
    for row in rows:
        with suppress(GptjobsError):  # without a validation loss yet
            found.append(comparison.compared(layout, row["id"], row["name"] or row["id"]))
    names = comparison.differing(found)
    why = comparison.against_ranking(found) if len(found) > 1 else None
    ranked = sorted(found, key=lambda each: each.last.val_loss) if why is None else found
    return {
        "curves": shown,
        "names": names,
        "rows": [
            {
                "id": each.job,
                "name": each.name,
                "val_loss": each.last.val_loss,
                "context": each.last.context,
                "tokens": each.last.tokens,
                "step": each.last.step,
                "values": [value_in_words(each.values[name]) for name in names],
            }
            for each in ranked
        ],
        "why_not": why,
        "verdict": _verdict(ranked) if why is None else [],
    }


def _verdict(ranked: Sequence[comparison.Compared]) -> list[str]:
    return [
        f"{each.name} against {ranked[0].name}: {difference}"
        for each in ranked[1:]
        if (difference := comparison.difference(each, ranked[0])) is not None
    ]


def axis_of(word: str) -> str:
    if word not in AXES:
        raise UsageError(f"there is no axis '{word}'", hint=", ".join(AXES))
    return word
