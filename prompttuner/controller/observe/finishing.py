"""End the jobs whose accepted member says that it is done: the result is copied, the prompt enters the bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.observe.reports import Facts, JobFacts
from prompttuner.controller.observe.results import promote
from prompttuner.controller.resources import Resources
from prompttuner.controller.upkeep.harvest import BankView, enter_result
from prompttuner.db.queries.live import Rows, live_rows
from prompttuner.db.tables.models import Job
from prompttuner.db.tables.recorded import lookup_of
from prompttuner.errors import SpoolError
from prompttuner.protocol.jobs import Done
from prompttuner.states import JobState
from prompttuner.words import Counted
from prompttuner.worker.membership import member_dir

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Finisher"]


class Finisher:
    """Takes results; it remembers nothing."""

    def __init__(self, resources: Resources, bank: BankView) -> None:
        self._res = resources
        self._bank = bank

    def finish(self, rows: Rows, facts: Facts | None) -> tuple[Rows, int]:
        """Finish what is done; returns the rows as they are now, and how many jobs have ended."""
        known = {} if facts is None else facts.jobs
        ended = [job for job in rows.jobs if job.id in known and self._finish(job, known[job.id])]
        return (self._res.state.query(live_rows) if ended else rows), len(ended)

    def _finish(self, job: Job, facts: JobFacts) -> bool:
        """Promote the result of a job whose accepted member says it is done; True if it has ended now."""
        if facts.done is None or facts.plan is None or facts.plan.generation != job.generation:
            return False
        res = self._res
        member, done = facts.done
        folder = res.spool.job(job.id)
        try:
            promote(folder, member_dir(folder, job.generation, member))
        except SpoolError as error:
            res.warn(f"{job.id}: {error}")
            return False
        self._bank.forget()
        if trouble := enter_result(res.settings.bank_dir, folder, job.id, facts.lookup or lookup_of(job)):
            res.warn(trouble)
        outcome = done.outcome
        state = JobState.DONE if outcome == "reached" else JobState.EXHAUSTED

        def work(session: Session) -> None:
            tx = Tx(session, res.now())
            row = session.get_one(Job, job.id)
            for column, name in (("step", "step"), ("eval_loss", "loss"), ("metric", "metric")):
                if getattr(done, name) is not None:
                    setattr(row, column, getattr(done, name))
            row.outcome, row.ita = outcome, done.ita
            row.lookup_done = True
            tx.end_job(row, state, _ending(done))

        res.state.write(work)
        return True


def _ending(done: Done) -> str:
    """In words, why a job has ended with its own consent."""
    if done.outcome == "reached":
        return f"target reached after {Counted(done.ita or 0, 'iteration')}"
    so_far = "" if done.metric is None else f"; its best evaluation, {done.metric:.4g}, is the result"
    if done.outcome == "exhausted":
        return f"max_iterations are used up and the target was not reached{so_far}"
    return f"{done.outcome}{so_far}"
