"""A job with ``initial_prompt = auto`` on the real cluster starts from what the Prompt Bank holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_site import SlurmUser

from prompttuner import JobSpec, submit
from prompttuner.bank import Bank, Entry
from prompttuner.db import Store
from prompttuner.db.queries import jobs
from prompttuner.smallmodel import tasks
from prompttuner.states import JobState

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_auto_looks_up_in_the_first_lease_and_the_result_joins_the_bank(slurm: Cluster, tmp_path: Path) -> None:
    user = SlurmUser(slurm, tmp_path / "home", policy="prompttuner")
    model = str(user.another_model())
    shelf = Bank.create(user.settings.bank_dir).shelf(model)
    for name in ("rotate_left+same", "rotate_left+next", "copy+upper", "drop_last+same", "reverse+same"):
        for text in tasks.phrasings(tasks.get(name))[:3]:
            shelf.add(Entry(kind="text", model=model, text=text, task=name))
    before = set(shelf.ids())
    train, evaluation = tasks.write_dataset("rotate_left+upper", user.home / "data", train=256, evaluation=32)
    spec = JobSpec(
        name="auto", model=model, train=train, eval=evaluation, target="loss<=0.3", deadline="10m",
        max_gpus=1, learning_rate=0.02, batch_size=16, max_iterations=400, eval_every=5,
    )  # fmt: skip  # stated of another model than "small": a lookup that even a busy machine has time for
    user.start()
    try:
        job = submit(spec, settings=user.settings)
        (ended,) = user.wait(job)
        assert ended["state"] == JobState.DONE
        with Store.open(user.settings.database_url, read_only=True) as store, store.read() as session:
            row = jobs.get(session, job)
        assert row.lookup is not None and row.lookup.get("chosen") in before, row.lookup
        assert row.initial_prompt.startswith("bank:")
        assert len(set(shelf.ids()) - before) == 1, "its own prompt has joined the bank"
    finally:
        user.stop()
