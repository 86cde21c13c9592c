"""`loss_plateau_analysis.md`: a diagnosis for people, with its pictures beside it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gptjobs import durable, picture
from gptjobs.case import Case
from gptjobs.causes.cause import PossibleCause
from gptjobs.causes.facts import noise_scale, stands_still
from gptjobs.data.inspect import Inspection
from gptjobs.errors import Refused

_TITLE = "# Why the loss of "
_WORDS = ((0.9, "almost certain"), (0.6, "likely"), (0.35, "possible"), (0.0, "a mention"))


def in_a_word(strength: float) -> str:
    return next(word for least, word in _WORDS if strength >= least)


def check(path: Path) -> None:
    """Raise Refused where another one's file has this name: people write such analyses by hand."""
    with suppress(FileNotFoundError):
        with path.open(errors="replace") as file:
            is_own = file.read(len(_TITLE)) == _TITLE
        if not is_own:
            raise Refused(f"{path} is there, and no diagnosis wrote it", hint="move it away, or another folder")


def write(path: Path, case: Case, causes: Sequence[PossibleCause], inspection: Inspection | None) -> list[Path]:
    """Write it and its pictures, where matplotlib is there; returns what was written."""
    pictures: dict[str, Path] = {}
    with suppress(ModuleNotFoundError):
        course = path.with_suffix(".png")
        picture.draw_case(course, case)
        pictures["the course"] = course
        if inspection is not None and inspection.anomalies:
            text = path.with_name(f"{path.stem}_text.png")
            picture.draw_inspection(text, "the text", inspection)
            pictures["the text"] = text
    lines = [f"{_TITLE}{case.name} is as it is", "", *_facts(case), ""]
    lines += [f"![{name}]({made.name})\n" for name, made in pictures.items()]
    if not causes:
        lines += ["Nothing speaks for any of the causes that are known here.", ""]
    for place, each in enumerate(causes, start=1):
        lines += [f"## {place}. {each.title}", "", f"*{in_a_word(each.strength)}* ({each.strength:.2f})", ""]
        lines += [f"- {evidence}" for evidence in each.evidence]
        lines += ["", f"Against it would speak: {each.against}.", "", "```", *each.tests, "```", ""]
    durable.write(path, "\n".join(lines).encode())
    return [path, *pictures.values()]


def _facts(case: Case) -> list[str]:
    first, last = case.points[0], case.points[-1]
    lines = [f"- {len(case.points):,} lines, from step {first.step:,} to {last.step:,}"]
    if last.tokens is not None:
        lines.append(f"- {last.tokens:,} tokens trained on")
    standing = stands_still(case)
    if standing is not None:
        lines.append(f"- the loss stands still: {standing[0]:.4f} before the last third, {standing[1]:.4f} at the end")
    if case.text is not None:
        odd, text = len(case.text.odd), case.text
        lines.append(
            f"- the text has {text.tokens:,} tokens, {odd or 'no'} odd range{'' if odd == 1 else 's'}; "
            f"the entropy of its tokens' frequencies is {text.unigram:.3f} nats"
        )
    lines += [f"- {each.reason}" for each in case.rises]
    scale = noise_scale(case)
    if scale is not None:
        lines.append(f"- the gradient noise scale is {scale:,.0f} windows")
    elif not any(each.micro_norm for each in case.points):
        lines.append("- the gradient's noise was not measured: that takes steps in several parts, --micro-batch")
    return lines
