"""What a reaper sees: leases whose beat stands still for a TTL of its own time, and no others."""

from gptjobs.leases import LEASE_TTL_S
from worker.rescue import Watch

BEAT = (1, 5)
"""a token and a beat"""


def watched(*looks: tuple[float, dict[str, tuple[int, ...]]]) -> tuple[Watch, list[str]]:
    """A watch after these looks, and what the last one found."""
    watch, found = Watch(), []
    for now, marks in looks:
        found = watch.stale(marks, now)
    return watch, found


def test_a_beat_that_stands_still_for_a_ttl_is_stale():
    watch, found = watched((0.0, {"a": BEAT}), (LEASE_TTL_S - 0.1, {"a": BEAT}))
    assert found == []
    assert watch.stale({"a": BEAT}, LEASE_TTL_S) == ["a"]


def test_a_job_that_is_seen_for_the_first_time_is_never_stale():
    assert Watch().stale({"a": BEAT}, 1e9) == []


def test_a_beat_that_grows_is_alive_however_slowly():
    watch = Watch()
    for beat in range(20):
        assert watch.stale({"a": (1, beat)}, beat * (LEASE_TTL_S - 0.1)) == []


def test_another_token_with_the_same_beat_is_another_lease():
    watch, _ = watched((0.0, {"a": (1, 5)}), (9.0, {"a": (2, 5)}))
    assert watch.stale({"a": (2, 5)}, LEASE_TTL_S + 1.0) == []
    assert watch.stale({"a": (2, 5)}, LEASE_TTL_S + 9.0) == ["a"]


def test_each_job_has_a_watch_of_its_own():
    watch, _ = watched((0.0, {"a": BEAT}), (5.0, {"a": BEAT, "b": BEAT}))
    assert watch.stale({"a": BEAT, "b": BEAT}, LEASE_TTL_S) == ["a"]
    assert watch.stale({"a": BEAT, "b": BEAT}, LEASE_TTL_S + 5.0) == ["b"]


def test_what_was_found_is_watched_anew():
    watch, found = watched((0.0, {"a": BEAT}), (LEASE_TTL_S, {"a": BEAT}))
    assert found == ["a"]
    assert watch.stale({"a": BEAT}, LEASE_TTL_S + 1.0) == []
    assert watch.stale({"a": BEAT}, 2 * LEASE_TTL_S) == []
    assert watch.stale({"a": BEAT}, 2 * LEASE_TTL_S + 1.0) == ["a"]


def test_a_job_that_was_away_is_watched_anew():
    _, found = watched((0.0, {"a": BEAT}), (5.0, {}), (6.0, {"a": BEAT}), (LEASE_TTL_S + 1.0, {"a": BEAT}))
    assert found == []


def test_after_a_pause_of_its_own_a_worker_forgets_what_it_saw():
    watch, _ = watched((0.0, {"a": BEAT, "b": BEAT}))
    watch.forget()
    assert watch.stale({"a": BEAT, "b": BEAT}, 1000.0) == []
    assert watch.stale({"a": BEAT, "b": BEAT}, 1000.0 + LEASE_TTL_S) == ["a", "b"]


def test_a_job_that_backs_off_is_rung_for_after_its_wait() -> None:
    watch = Watch()
    waits = {"slow": 40.0}
    marks = {"slow": (1,), "quick": (1,)}
    assert watch.stale(marks, 0.0, waits) == []
    assert watch.stale(marks, LEASE_TTL_S, waits) == ["quick"]
    assert watch.stale({"slow": (1,)}, 39.9, waits) == []
    assert watch.stale({"slow": (1,)}, 40.0, waits) == ["slow"]
