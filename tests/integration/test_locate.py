"""`gptjobs data locate`: from a step of a job to the text that it saw."""

import json

import pytest

from gptjobs import ranges, record
from gptjobs.config import Plan
from gptjobs.data import encoding, tokens
from gptjobs.data.locate import Text
from gptjobs.errors import UsageError
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from tests.conftest import Commands
from tests.unit.conftest import NOON
from tests.unit.test_training import attempted, planned
from worker.trainer.batches import Batches


def recorded(layout: Layout, plan: Plan) -> None:
    record.write_spec(layout, JobSpec(id=plan.job, kind=plan.kind, submitted_at=NOON))
    layout.config_file(plan.job).write_text(json.dumps(plan.to_dict()))


def test_the_windows_of_a_step_are_those_that_the_trainer_reads(gptjobs: Commands, layout: Layout) -> None:
    first = planned(layout, "first")
    recorded(layout, first)
    parent = attempted(layout, first).last
    second = planned(layout, "second", parent, steps=4, batch_size=3)
    recorded(layout, second)
    attempted(layout, second)
    data = Batches(layout.token_file("text", second.data_digest, "bytes"), 8, second.settled.train.seed)
    source = (layout.root / "sources" / "text.md").read_bytes()
    shown = json.loads(gptjobs.ok("data", "locate", "--job", "second", "--step", "8", "--json"))
    inputs, _ = data.batch(6 * 4 + 3, 3)
    assert shown["windows_in_all"] == 3
    assert [each["text"].encode() for each in shown["windows"]] == [bytes(each.tolist()) for each in inputs]
    for each in shown["windows"]:
        assert source[each["first_byte"] : each["last_byte"]] == each["text"].encode()
        assert each["line"] == source[: each["first_byte"]].count(b"\n") + 1

    tokens_of_first = 6 * 4 * 8
    by_tokens = gptjobs.ok(
        "data", "locate", "--job", "second", "--tokens", f"{tokens_of_first + 24}:{tokens_of_first + 48}", "--json"
    )
    assert json.loads(by_tokens) == shown
    words = gptjobs.ok("data", "locate", "--job", "second", "--step", "8", "-n", "1")
    assert words.startswith("step 8  bytes ") and ", line " in words
    assert gptjobs("data", "locate", "--job", "second", "--step", "99").returncode == 4
    assert gptjobs("data", "locate", "--job", "second").returncode == 2
    assert gptjobs("data", "locate", "--job", "second", "--tokens", "9:3").returncode == 2


def test_tokens_of_several_bytes_are_found_by_their_lengths(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's own table cannot be had everywhere: this one has pairs of letters."""
    ranks = {bytes([each]): each for each in range(256)} | {b"he": 256, b"the": 257, b" t": 258, b" o": 259}
    monkeypatch.setattr(encoding, "ranks", lambda layout: ranks)
    text = "\n".join("the other owl then" for _ in range(3000)) + "\n"
    source = layout.root / "sources" / "pairs.md"
    source.write_text(text)
    digest = tokens.digest_of(source)
    made = tokens.prepare(layout, source, digest, "r50k_base")
    file = layout.token_file("pairs", digest, "r50k_base")
    found = Text(layout, source, file, "r50k_base")
    bytes_of = {rank: token for token, rank in ranks.items()}
    everything = [int.from_bytes(file.read_bytes()[at : at + 2], "little") for at in range(0, 2 * made.token_count, 2)]
    for first in (0, 5, 4095, 4096, 4097, 12_000):
        span = found.span(first, first + 7)
        assert span.text.encode() == b"".join(bytes_of[each] for each in everything[first : first + 7])
        assert text.encode()[span.first_byte : span.last_byte] == span.text.encode()
        assert span.line == text.encode()[: span.first_byte].count(b"\n") + 1


@pytest.mark.parametrize(("words", "counts"), [("2.0M:2.5M", (2_000_000, 2_500_000)), ("300k:1e6", (300_000, 10**6))])
def test_counts_are_read_as_people_write_them(words: str, counts: tuple[int, int]) -> None:
    assert ranges.between(words) == counts


@pytest.mark.parametrize("words", ["", "5", "5:", ":5", "a:b", "5:5", "-1:5", "1e400:2"])
def test_what_is_no_range_of_tokens_is_said(words: str) -> None:
    with pytest.raises(UsageError, match="is no range of tokens"):
        ranges.between(words)
