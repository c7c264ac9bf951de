"""Token bucket, breaker and caps: properties that hold whatever the clock and the site do."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.slurm.limits import Breaker, HardCaps, TokenBucket, allowance


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 200), st.booleans()), max_size=60), st.integers(1, 30), st.integers(1, 10))
def test_no_window_sees_more_than_burst_and_rate(steps: list[tuple[float, bool]], rate: int, burst: int) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 1000.0, []
    for wait, through_storage in steps:
        now += wait
        if through_storage:
            state = json.loads(json.dumps(bucket.to_json()))
            bucket = TokenBucket(rate, burst)
            bucket.restore(state)
        for _ in range(bucket.available(now)):
            bucket.take(now)
            taken.append(now)
    for start in taken:
        for length in (1.0, 60.0, 600.0):
            inside = sum(start <= at <= start + length for at in taken)
            assert inside <= burst + length * rate / 60 + 1


def test_clock_that_jumps_back_gives_nothing_away() -> None:
    bucket = TokenBucket(60, 5)
    bucket.take(1000.0, 5)
    assert bucket.available(10.0) == 0
    assert bucket.available(11.0) == 1


def test_nonsense_in_storage_counts_as_empty() -> None:
    bucket = TokenBucket(60, 5)
    bucket.restore({"tokens": "many", "at": None})
    assert bucket.available(1000.0) == 0
    assert bucket.available(1002.0) == 2


def test_breaker_pauses_longer_each_time_tries_once_and_closes() -> None:
    breaker = Breaker(threshold=3, pause_s=10, max_pause_s=35)
    for _ in range(2):
        breaker.failure(0.0, "no")
    assert breaker.allows(0.0)
    pauses = []
    now = 0.0
    for _ in range(4):
        breaker.failure(now, "QOSMaxSubmitJobPerUserLimit")
        assert not breaker.allows(now)
        assert "QOSMaxSubmitJobPerUserLimit" in (breaker.describe(now) or "")
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
        assert breaker.probing(now)
    assert pauses == [10, 20, 35, 35]
    breaker.success()
    assert breaker.allows(now)
    assert breaker.describe(now) is None


def test_breaker_survives_a_restart_and_a_clock_that_was_wrong() -> None:
    breaker = Breaker(threshold=1, pause_s=10)
    breaker.failure(100.0, "x")
    again = Breaker(threshold=1, pause_s=10)
    again.restore(json.loads(json.dumps(breaker.to_json())))
    assert not again.allows(105.0)
    assert again.allows(110.0)
    again.open_until = 1e12
    assert again.allows(110.0), "no pause is that long"


def test_tightest_limit_counts_and_says_so() -> None:
    def asked(**changes: float) -> tuple[int, str]:
        bucket = TokenBucket(600, 8)
        caps = HardCaps(changes.get("cap_gpus", float("inf")), changes.get("cap_jobs", float("inf")))
        found = allowance(0.0, bucket, Breaker(), caps, held_gpus=3, held_jobs=3, gpus_each=2)
        return found.requests_now, found.reason

    assert asked() == (8, "at most 600 submissions a minute")
    assert asked(cap_gpus=8)[0] == 2
    assert asked(cap_jobs=4) == (1, "allocations there: 3 of 4 at most")
    assert asked(cap_jobs=2)[0] == 0
    broken = Breaker(threshold=1, pause_s=60)
    broken.failure(0.0, "denied")
    assert allowance(1.0, TokenBucket(60, 5), broken, HardCaps(), held_gpus=0, held_jobs=0).requests_now == 0
    assert allowance(61.0, TokenBucket(60, 5), broken, HardCaps(), held_gpus=0, held_jobs=0).requests_now == 1
