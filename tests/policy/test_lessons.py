"""What the planner makes of how wrong it was told: starts at what it is told, moves within ten jobs, recovers."""

import math

import numpy as np
import pytest

from prompttuner.policy import get
from prompttuner.policy.contract.plan import Assign
from prompttuner.policy.contract.snapshot import JobPhase, Lessons
from prompttuner.policy.lessons import LATEST, MEMORY_S, corrected, ratio

NOTHING = np.zeros((0, 2))


def seen(*ratios, at=0.0):
    return np.array([[at, value] for value in ratios])


def test_without_errors_all_is_taken_as_it_is_told(make):
    snapshot = make([{"deadline": 40.0}])
    assert corrected(snapshot) is snapshot
    snapshot.lessons = [Lessons(seen(1.0, 1.0), NOTHING, seen(1.0), seen(1.0))]
    told = corrected(snapshot)
    assert told.jobs.iters_mid.tolist() == [100.0] and told.pools == snapshot.pools


def test_ten_jobs_that_needed_twice_the_work_outweigh_what_is_told_and_ten_honest_ones_bring_it_back():
    mid, high = ratio(seen(*[2.0] * 10), now=0.0)
    assert 1.7 < mid < 2.0 < high < 2.6
    back, _ = ratio(seen(*[2.0] * 10, *[1.0] * LATEST), now=0.0)
    assert back == 1.0


def test_an_error_is_forgotten_in_time():
    assert ratio(seen(*[2.0] * 10), now=5 * MEMORY_S)[0] == pytest.approx(1.0, abs=0.05)


def test_a_job_gets_more_gpus_where_others_like_it_took_longer(make):
    snapshot = make([{"deadline": 60.0}], [{} for _ in range(8)])
    (before,) = [a for a in get("prompttuner").plan(snapshot).actions if isinstance(a, Assign)]
    snapshot.lessons = [Lessons(seen(*[2.0] * 10), NOTHING, NOTHING, NOTHING)]
    (after,) = [a for a in get("prompttuner").plan(snapshot).actions if isinstance(a, Assign)]
    (off,) = [a for a in get("prompttuner", learn=False).plan(snapshot).actions if isinstance(a, Assign)]
    assert len(after.agents) > len(before.agents) == len(off.agents)


def test_what_a_running_job_has_shown_itself_is_not_corrected(make):
    running = {"phase": JobPhase.RUNNING, "phase_since": -100.0}
    snapshot = make([running, {}])
    snapshot.lessons = [Lessons(seen(*[2.0] * 10), NOTHING, NOTHING, NOTHING)]
    mid = corrected(snapshot).jobs.iters_mid
    assert mid[0] == 100.0 and mid[1] > 170.0
    snapshot.jobs.unseen = np.array([0.5, 1.0])
    assert 100.0 < corrected(snapshot).jobs.iters_mid[0] < mid[1]


def test_a_bank_that_did_not_help_is_not_asked_and_tried_again_later(make):
    job = {"deadline": 900.0, "bank_factor_mid": 0.5, "bank_factor_hi": 0.7}
    for now, looks in ((0.0, False), (6 * MEMORY_S, True)):
        snapshot = make([{**job, "submit": now, "phase_since": now, "deadline": now + 900.0}], [{}], now=now)
        snapshot.lessons = [Lessons(NOTHING, seen(*[2.2] * 10), NOTHING, NOTHING)]
        (assign,) = [a for a in get("prompttuner").plan(snapshot).actions if isinstance(a, Assign)]
        assert (assign.lookup_s > 0) is looks


def test_queue_and_starts_that_took_longer_are_planned_longer(make):
    snapshot = make([{"deadline": 900.0}])
    snapshot.lessons = [Lessons(NOTHING, NOTHING, seen(*[10.0] * 12), seen(*[1.5] * 12))]
    (pool,) = corrected(snapshot).pools
    assert pool.queue_s > 10.0 and 25.0 < pool.start_s < 35.0 and math.isfinite(pool.queue_s)
