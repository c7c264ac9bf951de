"""A job on local processes: plans as a controller writes them, leases as an agent has them, without either."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lingering import linger, release

from prompttuner.files import write_json
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.jobs import Membership
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.worker.lease import LeaseEnd, run_lease
from prompttuner.worker.membership import member_dir, propose, read_membership

FAST = ElasticSettings(loss_timeout_s=10, grace_s=3, join_timeout_s=90, poll_s=0.02)
"""Patient with members whom a busy machine keeps waiting."""
PATIENCE_S = 180.0


def paced_spec(**paced: Any) -> dict[str, Any]:
    values = {"step_s": 0.01, "speedup": [1, 1.9, 3.5, 5], "iterations": 100, **paced}
    target = {"metric": "loss", "op": "<=", "value": 0.5}
    spec = {"model": "none", "target": target, "batch_size": 8, "max_iterations": 100000, "paced": values}
    return ResolvedSpec.expect(spec).to_json()


def wait_for(condition: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
    seconds = seconds or PATIENCE_S
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s for {what}")


class Job:
    """A job folder and the lease processes that work on it, one an agent at most."""

    def __init__(
        self,
        folder: Path,
        spec: dict[str, Any],
        *,
        settings: ElasticSettings = FAST,
        model: Any = None,
        quick: int | None = None,
    ) -> None:
        """``quick``: linger after so many steps of each generation, until ``release``; None: never."""
        folder.mkdir(parents=True, exist_ok=True)
        self.dir = folder
        self.settings = settings
        self.model = model
        self.quick = quick
        self.pids: dict[str, int] = {}
        self.ends: dict[str, LeaseEnd | int] = {}
        write_json(folder / "spec.json", spec)

    # -- the controller's part ---------------------------------------------------------------------------------

    @property
    def plan(self) -> Membership | None:
        return read_membership(self.dir)

    def assign(self, members: Sequence[str], *, stop: str | None = None, lookup_s: float = 0.0) -> Membership:
        """Plan these members, tell the newcomers' agents, and return the plan.

        Like the controller it gives leases to warm agents only: who is still leaving is waited for.
        """
        staying = self.plan.members if self.plan else ()
        for agent in set(members).difference(staying).intersection(self.pids):
            self.wait_end(agent)
        while True:
            now = self.plan
            base = now or Membership(0, ())
            plan = base.after(
                members, by="controller", addresses=dict.fromkeys(members, "127.0.0.1"), stop=stop, lookup_s=lookup_s
            )
            if now is None:
                plan = replace(plan, previous=())
            if propose(self.dir, plan):
                break
        self.reap()
        for agent in members:
            if agent not in self.pids:
                self.lease(agent, plan.generation)
        return plan

    def release(self) -> None:
        """No change is to come: let the job run to its end."""
        release(self.dir)

    # -- the agents' part --------------------------------------------------------------------------------------

    def lease(self, agent: str, generation: int) -> int:
        """Fork a process that runs a lease; the harness has imported everything, as a zygote has."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                torch.set_num_threads(1)
                if self.quick is not None:
                    linger(self.quick)
                end = run_lease(
                    self.dir,
                    agent=agent,
                    generation=generation,
                    address="127.0.0.1",
                    model=self.model,
                    settings=self.settings,
                )
                (self.dir / f"end-{agent}.json").write_text(json.dumps([end.outcome, end.error]))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        self.pids[agent] = pid
        self.ends.pop(agent, None)
        (self.dir / f"end-{agent}.json").unlink(missing_ok=True)
        return pid

    def reap(self) -> None:
        for agent, pid in list(self.pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.pids[agent]
                told = self.dir / f"end-{agent}.json"
                code = os.waitstatus_to_exitcode(status)
                self.ends[agent] = LeaseEnd(*json.loads(told.read_text())) if told.exists() else code

    def signal(self, agent: str, number: int = signal.SIGKILL) -> None:
        """SIGKILL takes the worker's children too, as the end of an allocation does."""
        if number == signal.SIGKILL:
            os.killpg(self.pids[agent], number)
        else:
            os.kill(self.pids[agent], number)

    def wait_end(self, agent: str) -> LeaseEnd | int:
        def ended() -> bool:
            self.reap()
            return agent in self.ends and agent not in self.pids

        wait_for(ended, f"the end of {agent}'s lease")
        return self.ends[agent]

    def wait_step(self, steps: int, members: Sequence[str]) -> int:
        """Until these members have begun ``steps`` steps together; returns the last one begun."""

        def there() -> int | None:
            plan = self.plan
            if plan is None or plan.members != tuple(members):
                return None
            path = member_dir(self.dir, plan.generation, members[0]) / "journal.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            begun = [line["step"] for line in lines if "ids" in line]
            return begun[-1] if len(begun) >= steps else None

        found: int = wait_for(there, f"{steps} steps of {members}")
        return found

    def kill_all(self) -> None:
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.pids.clear()

    # -- what is left behind -----------------------------------------------------------------------------------

    def result(self) -> tuple[Membership, dict[str, Any], Path]:
        """The result that counts: of the newest generation that has one, by its plan's first member."""
        plan = self.plan
        assert plan is not None
        for generation, members in ((plan.generation, plan.members), *reversed(plan.previous)):
            for agent in members:
                folder = member_dir(self.dir, generation, agent)
                if (folder / "done.json").exists():
                    return plan, json.loads((folder / "done.json").read_text()), folder
        raise AssertionError(f"no result in {sorted(str(p) for p in self.dir.rglob('*.json'))}")

    def journal(self) -> list[dict[str, Any]]:
        lines = []
        for path in self.dir.glob("g*/*/journal.jsonl"):
            for line in path.read_text().splitlines():
                lines.append({**json.loads(line), "agent": path.parent.name})
        return lines


def check_journal(job: Job, final_step: int, batch: Callable[[int], Sequence[int]]) -> dict[int, int]:
    """Every step was applied exactly once in the surviving history, by disjoint shards of the global batch.

    A generation's surviving steps are those from its start to the start of the next generation that began. Returns the
    number of steps that were computed and not kept (0 unless members were lost), by generation.
    """
    lines = job.journal()
    starts: dict[int, int] = {}
    for line in lines:
        if "start" in line:
            assert starts.setdefault(line["g"], line["start"]) == line["start"], "members began at different steps"
    generations = sorted(starts)
    lost: dict[int, int] = {}
    applied: list[int] = []
    for generation, following in zip(generations, [*generations[1:], None], strict=True):
        end = final_step if following is None else starts[following]
        shards: dict[int, dict[int, dict[str, Any]]] = {}
        for line in lines:
            if line["g"] == generation and "ids" in line:
                assert line["rank"] not in shards.setdefault(line["step"], {}), f"{line} twice"
                shards[line["step"]][line["rank"]] = line
        for step in range(starts[generation], end):
            members = shards[step]
            world = members[0]["world"]
            assert sorted(members) == list(range(world)), f"step {step} of generation {generation}: {sorted(members)}"
            parts = [members[rank]["ids"] for rank in range(world)]
            assert sorted(chain(*parts)) == sorted(batch(step)), f"step {step} of generation {generation}"
            sizes = [len(part) for part in parts]
            assert max(sizes) - min(sizes) <= 1, "one member idle while another has two"
            applied.append(step)
        beyond = [step for step in shards if step >= end]
        if beyond:
            lost[generation] = len(beyond)
    assert applied == list(range(final_step))
    return lost
