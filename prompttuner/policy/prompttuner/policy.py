"""The policy of prompttuner: deadlines met with few GPUs, by planning all jobs on one timeline of free agents."""

from __future__ import annotations

from dataclasses import dataclass

from prompttuner.policy.contract.plan import Plan
from prompttuner.policy.contract.snapshot import Snapshot
from prompttuner.policy.lessons import corrected
from prompttuner.policy.prompttuner.filling import boost, fill
from prompttuner.policy.prompttuner.keeping import keep_or_release
from prompttuner.policy.prompttuner.limiting import respect_limits
from prompttuner.policy.prompttuner.placing import place_all
from prompttuner.policy.prompttuner.planning_pass import Pass, open_pass
from prompttuner.policy.prompttuner.prewarming import prewarm
from prompttuner.policy.prompttuner.switches import Switches

__all__ = ["PromptTuner"]


@dataclass(frozen=True, slots=True)
class PromptTuner(Switches):
    """Earliest deadline first with the fewest GPUs, elastic, from warm pools; see docs/reference/policies.md.

    One pass: demote what cannot be met; place jobs with deadlines (waiting ones, and running ones that are late) on
    the timeline; rescue those that do not fit; let best effort fill the gaps; warm agents for bursts that are
    expected; lend idle GPUs; release the rest.
    """

    name: str = "prompttuner"

    def plan(self, snapshot: Snapshot) -> Plan:
        """The actions of one tick."""
        work: Pass = open_pass(corrected(snapshot) if self.learn else snapshot, self)
        respect_limits(work)
        place_all(work)
        fill(work)
        prewarm(work)
        if self.boost:
            boost(work)
        keep_or_release(work)
        return work.finish()
