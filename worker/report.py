"""What a sweep leaves in `outputs/` when it ends: a summary with its verdict, and two pictures."""

import logging
from collections.abc import Sequence
from typing import Any

from gptjobs import durable, findings, picture, trials
from gptjobs.contract import value_in_words
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from gptjobs.sweep import Sweep, params_in_words
from gptjobs.trials import Ranking, Tried
from gptjobs.verdict import CONFIDENCE

logger = logging.getLogger(__name__)


def summarise(layout: Layout, sweep: Sweep, tried: Sequence[Tried]) -> None:
    """Write the pictures, then `summary.md`, which says that the sweep has ended."""
    ranking = trials.rank(tried)
    pictures = _draw(layout, sweep, tried)
    durable.write(layout.summary_file(sweep.id), "\n".join([*_summary(layout, sweep, ranking, pictures), ""]).encode())


def refuse(layout: Layout, sweep: Sweep, error: GptjobsError) -> None:
    """The summary of a sweep that cannot begin."""
    words = f"# Sweep {sweep.called}\n\nIt could not begin: {error.message}\n"
    durable.write(layout.summary_file(sweep.id), words.encode())


def _draw(layout: Layout, sweep: Sweep, tried: Sequence[Tried]) -> list[str]:
    """The names of the pictures that could be drawn."""
    curves = {str(each.trial.number): [(one.tokens, one.val_loss) for one in each.evaluations] for each in tried}
    ended = [each for each in tried if each.last is not None]
    rows = [(dict(each.trial.params), each.last.val_loss) for each in ended if each.last]
    drawn = []
    if any(curves.values()):
        picture.draw_trials(layout.loss_picture(sweep.id), sweep.called, curves)
        drawn.append(layout.loss_picture(sweep.id).name)
    if len(rows) > 1:
        picture.draw_parallel(layout.parallel_picture(sweep.id), sweep.called, rows)
        drawn.append(layout.parallel_picture(sweep.id).name)
    return drawn


def _summary(layout: Layout, sweep: Sweep, ranking: Ranking, pictures: Sequence[str]) -> list[str]:
    rows = findings.rows(ranking)
    lines = [f"# Sweep {sweep.called}", "", f"- id: {sweep.id}"]
    lines += [f"- from {sweep.parent}" if sweep.parent else "- from scratch"]
    lines += [f"- searched: {' '.join(map(str, sweep.dimensions))}"] if sweep.dimensions else []
    if sweep.changes:
        changes = params_in_words({name: given.value for name, given in sweep.changes.items()})
        lines += [f"- changes: {changes}; each alone, all together, and none"]
    lines += [f"- sampler {sweep.sampler}, pruner {sweep.pruner}, {len(rows)} trials"]
    lines += ["", "## Trials", "", *_table(rows)]
    lines += ["", "## Verdict", "", *_verdict(layout, sweep, ranking)]
    if shares := _importances(sweep, [*ranking.ranked]):
        lines += ["", "## Importance", "", "| hyperparameter | part of the differences |", "| --- | ---: |"]
        lines += [f"| {name} | {share:.0%} |" for name, share in shares.items()]
    for each in pictures:
        lines += ["", f"![{each}]({each})"]
    if ranking.ranked:
        lines += ["", "## Go on with the best", "", f"    {resume_command(sweep)}"]
    return lines


def resume_command(sweep: Sweep) -> str:
    return f"gptjobs submit resume --from {sweep.called}@best --steps 2000"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = findings.hyperparameters(rows)
    lines = [f"| rank | trial | {' | '.join(names)} | state | tokens | val loss | context | job |"]
    lines += ["| ---: " * (2 + len(names)) + "| --- | ---: | ---: | ---: | --- |"]
    for each in rows:
        params = [value_in_words(each["params"][name]) if name in each["params"] else "·" for name in names]
        loss = "" if each["val_loss"] is None else f"{each['val_loss']:.4f}"
        cells = [
            str(each["rank"] or ""), str(each["trial"]), *params, each["state"],
            f"{each['tokens'] or 0:,}", loss, str(each["eval_context"] or ""), each["job"] or "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdict(layout: Layout, sweep: Sweep, ranking: Ranking) -> list[str]:
    found = findings.verdict_of(layout, sweep, ranking)
    if not found:
        return ["No two trials can be compared."]
    lines = [f"- {each}" for each in found]
    return [*lines, "", findings.basis(found, CONFIDENCE)]


def _importances(sweep: Sweep, ranked: Sequence[Tried]) -> dict[str, float]:
    try:
        from gptjobs import study
    except ModuleNotFoundError:
        return {}
    return study.importances(sweep, ranked)
