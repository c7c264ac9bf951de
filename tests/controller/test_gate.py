"""What keeps us polite towards Slurm holds for all processes of a user together."""

from __future__ import annotations

from pathlib import Path

from lab import Lab

from prompttuner.config import Settings
from prompttuner.controller.act.gate import Gate
from prompttuner.states import JobState


def test_questions_to_slurm_keep_their_distance_over_short_lived_commands(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    def asks(now: float) -> bool:
        return Gate(tmp_path / "gate.json", settings).may_ask(now, 10.0)

    assert [asks(now) for now in (100.0, 101.0, 109.9, 110.0, 119.0)] == [True, False, False, True, False]
    assert asks(50.0), "the clock was set back: what is noted lies in the future"
    assert not asks(55.0)


def test_many_submit_commands_in_a_row_ask_slurm_once(tmp_path: Path) -> None:
    """Each is a controller of its own, for one tick, where no daemon runs."""
    with Lab(tmp_path, squeue_min_s=30.0, backend="slurm", max_gpus=4) as lab:
        asked = 0

        def observe(known: object, real: object = lab.site.observe) -> object:
            nonlocal asked
            asked += 1
            return real(known)  # type: ignore[operator]

        lab.site.observe = observe  # type: ignore[method-assign, assignment]
        jobs = []
        for _ in range(20):
            jobs.append(lab.submit(ita=30, max_gpus=1))
            lab.tick()
            lab.crash()
            lab.site.step(0.2)
        assert asked == 1
        lab.run(600)
        assert [lab.job(job).state for job in jobs] == [JobState.DONE] * 20
