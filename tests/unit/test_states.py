"""The states of a job, the ways between them, and what the cause of an attempt's end leads to."""

import re
from pathlib import Path

import pytest

from gptjobs.job import (
    BACKOFF_S,
    LONGEST_BACKOFF_S,
    TERMINAL,
    WAYS,
    Cause,
    JobSpec,
    JobState,
    backoff_s,
    count_fruitless,
)

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_diagram_in_the_docs_is_the_table():
    drawn = set()
    for before, after, ways in re.findall(r"^    (\w+) --> (\w+): (.+)$", ARCHITECTURE.read_text(), re.M):
        drawn |= {(way, before, after) for way in ways.split(", ")}
    table = {(way, before.value, after.value) for way, steps in WAYS.items() for before, after in steps.items()}
    assert drawn == table


@pytest.mark.parametrize("state", JobState)
def test_a_way_leads_on_from_every_state_but_terminal_ones(state: JobState):
    leads_on = any(state in steps for steps in WAYS.values())
    assert leads_on is (state not in TERMINAL)


def test_losses_back_off_ever_longer_and_never_count():
    fruitless, waits = {}, []
    for _ in range(9):
        fruitless = count_fruitless(fruitless, Cause.LOST_HOST, wrote_checkpoint=False)
        waits.append(backoff_s(Cause.LOST_HOST, fruitless))
    assert waits == [0, BACKOFF_S, 20, 40, 80, 160, LONGEST_BACKOFF_S, LONGEST_BACKOFF_S, LONGEST_BACKOFF_S]
    assert not Cause.LOST_HOST.counts


def test_a_new_checkpoint_makes_what_was_before_it_forgotten():
    fruitless = {Cause.HUNG: 4, Cause.KILLED: 3}
    assert count_fruitless(fruitless, Cause.HUNG, wrote_checkpoint=True) == {}
    assert count_fruitless(fruitless, Cause.HUNG, wrote_checkpoint=False) == {Cause.HUNG: 5, Cause.KILLED: 3}


def test_a_restart_for_memory_that_grows_counts_only_without_a_new_checkpoint():
    assert count_fruitless({Cause.GROWTH: 1}, Cause.GROWTH, wrote_checkpoint=True) == {}
    assert count_fruitless({Cause.GROWTH: 1}, Cause.GROWTH, wrote_checkpoint=False) == {Cause.GROWTH: 2}
    assert Cause.GROWTH.counts and not Cause.GROWTH.backs_off


def test_a_drain_counts_for_nothing_and_waits_for_nothing():
    fruitless = {Cause.LOST_HOST: 4}
    assert count_fruitless(fruitless, Cause.STOPPED, wrote_checkpoint=False) == fruitless
    assert backoff_s(Cause.STOPPED, fruitless) == 0


def test_a_request_keeps_the_fields_of_a_later_version():
    spec = JobSpec(id="3f9a00000001", kind="train", submitted_at=1.0)
    later = {**spec.to_dict(), "version": "7.0", "gang": {"size": 8}}
    again = JobSpec.from_dict(later)
    assert again == spec
    assert again.to_dict() == later
