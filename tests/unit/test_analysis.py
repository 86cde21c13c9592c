"""The report of a diagnosis: causes by rank with their evidence and commands, and pictures where they can be drawn."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gptjobs import analysis
from gptjobs.case import Case, Point
from gptjobs.causes import possible_causes
from gptjobs.data.inspect import MEASURES, Anomaly, Inspection
from gptjobs.errors import Refused
from tests.unit.cases import ENTROPY, ODD, TEXT, case, falling, level, log, points, rise

SPIKED = case(
    points(lambda step: 2.5 if step < 500 else 6.0), rises=(rise(starts=tuple(range(ODD.first, ODD.last, 64))),),
    text=replace(TEXT, odd=(ODD,)),
)  # fmt: skip
INSPECTION = Inspection(
    window=1024, token_count=4096, unigram=ENTROPY, every=1, scores={name: [1.0, 2.0, 1.0, 1.5] for name in MEASURES},
    anomalies=(
        Anomaly(
            first=1024, last=2048, first_byte=1024, last_byte=2048, first_line=9, last_line=20, score=30.0,
            kinds=("noise",), reasons=("noise",),
        ),
    ),
)  # fmt: skip


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A relative path, as for a log."""
    monkeypatch.chdir(tmp_path)
    return Path("loss_plateau_analysis.md")


def written(report: Path, made: Case, inspection: Inspection | None = None) -> list[str]:
    """The names of the files."""
    analysis.check(report)
    return [each.name for each in analysis.write(report, made, possible_causes(made), inspection)]


def test_causes_stand_by_rank_with_evidence_what_speaks_against_them_and_commands(report: Path) -> None:
    written(report, SPIKED)
    causes, text = possible_causes(SPIKED), report.read_text()
    assert re.findall(r"^## (\d+)\. (.+)$", text, re.M) == [
        (str(place), each.title) for place, each in enumerate(causes, start=1)
    ]
    assert causes[0].name == "data" and "*almost certain* (0.96)" in text
    for each, part in zip(causes, text.split("\n## ")[1:], strict=True):
        assert re.findall(r"^- (.+)$", part, re.M) == list(each.evidence)
        assert f"Against it would speak: {each.against}." in part
        (block,) = re.findall(r"^```\n(.*?)\n```$", part, re.M | re.S)
        assert block.splitlines() == list(each.tests)


def test_the_facts_stand_above_them(report: Path) -> None:
    written(report, case(points(level(ENTROPY))))
    facts = report.read_text().partition("\n## ")[0]
    assert facts.startswith("# Why the loss of owls is as it is\n\n- 101 lines, from step 0 to 1,000\n- 512,000 tokens")
    assert "the loss stands still: " in facts and "no odd ranges; the entropy" in facts and "3.000 nats" in facts
    assert "--micro-batch" in facts
    measured = points(level(2.0), micro_norm=3.0, micro_windows=2)
    written(report, case(measured))
    assert "--micro-batch" not in report.read_text()


def test_pictures_are_pngs_that_the_report_shows(report: Path) -> None:
    names = written(report, SPIKED, INSPECTION)
    assert names == ["loss_plateau_analysis.md", "loss_plateau_analysis.png", "loss_plateau_analysis_text.png"]
    assert sorted(names) == sorted(each.name for each in Path.cwd().iterdir())
    for name in names[1:]:
        assert Path(name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert f"({name})" in report.read_text()


@pytest.mark.parametrize(
    "made",
    [
        log(points(falling(5.5, 2.2, 40), steps=0), text=None),
        log((Point(step=3),), text=None),
        log((Point(step=3, val_loss=2.5), Point(step=4, val_loss=2.4)), text=None, batch_size=None),
        case(points(falling(5.5, 2.2, 40)), rises=(rise(flown=False), rise(700, 700, steps=()))),
        case(
            points(falling(5.5, 2.2, 40)),
            rises=(rise(steps=({"step": 499, "loss": None, "learning_rate": 0.0, "grad_norm": None},)),),
        ),
    ],
)
def test_what_little_is_known_is_drawn(report: Path, made: Case) -> None:
    assert written(report, made)[1:] == ["loss_plateau_analysis.png"]


def test_where_nothing_speaks_for_a_cause_that_is_said(report: Path) -> None:
    written(report, log(points(falling(5.5, 1.5, 200)), text=None))
    assert "Nothing speaks for any of the causes" in report.read_text()


def test_without_matplotlib_the_report_is_written_all_the_same(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert written(report, SPIKED, INSPECTION) == ["loss_plateau_analysis.md"]
    assert "## 1. the text" in report.read_text() and "![" not in report.read_text()


def test_an_analysis_that_a_user_wrote_is_never_written_over(report: Path) -> None:
    written(report, SPIKED)
    analysis.check(report)
    report.write_text("# Loss plateau analysis\n\nAvoid the checkpoints after 1500.\n")
    with pytest.raises(Refused, match="no diagnosis wrote it"):
        written(report, SPIKED)
    assert "Avoid the checkpoints" in report.read_text()


@pytest.mark.parametrize(
    ("strength", "word"), [(0.95, "almost certain"), (0.6, "likely"), (0.4, "possible"), (0.3, "a mention")]
)
def test_a_strength_is_a_word(strength: float, word: str) -> None:
    assert analysis.in_a_word(strength) == word
