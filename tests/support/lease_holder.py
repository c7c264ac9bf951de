"""An agent reduced to what elastic tests need: loads the model once, then runs a lease whenever a plan names it.

Its generations go slowly after a few steps, until ``lingering.release``.

python lease_holder.py JOB_DIR AGENT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from lingering import linger

from prompttuner.engine.llm.model import load_model
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.worker.lease import read_spec, run_lease
from prompttuner.worker.membership import read_membership


def main(job_dir: Path, agent: str) -> None:
    torch.set_num_threads(1)
    linger(quick=5)
    model = load_model(read_spec(job_dir).model)
    (job_dir / f"ready-{agent}").write_text(str(time.time()))
    seen = 0
    while not (job_dir / "over").exists():
        plan = read_membership(job_dir)
        if plan is not None and agent in plan.members and plan.generation > seen:
            end = run_lease(
                job_dir,
                agent=agent,
                generation=plan.generation,
                address="127.0.0.1",
                model=model,
                settings=ElasticSettings.from_env(),
            )
            seen = end.generation
            with (job_dir / f"ends-{agent}.jsonl").open("a") as ends:
                ends.write(json.dumps([end.outcome, end.error, end.generation]) + "\n")
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
