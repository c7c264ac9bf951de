"""An agent does not switch to an LLM that its memory does not hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from lab import Lab, scratch_root

from prompttuner.db.queries import allocations
from prompttuner.db.tables.models import Allocation
from prompttuner.states import JobState


@pytest.mark.parametrize(("given", "switches"), [(3072, False), (8192, True), (None, True)])
def test_a_switch_needs_room_for_the_new_llm(given: int | None, switches: bool, tmp_path: Path) -> None:
    models = {}
    for name, size in (("tiny", 2**20), ("larger", 2**31)):
        models[name] = tmp_path / name
        models[name].mkdir()
        with (models[name] / "model.safetensors").open("wb") as handle:
            handle.truncate(size)  # takes no room on the disk
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), backend="slurm", max_gpus=1, slurm={"walltime_s": 7200}, idle_limit_s=60.0) as lab,
    ):
        first = lab.submit(ita=30, max_gpus=1, deadline_s=None, model=str(models["tiny"]))
        lab.run(40)
        assert lab.job(first).state == JobState.DONE
        (row,) = lab.store.query(allocations.find)
        if given is not None:

            def give(session) -> None:
                held = session.get_one(Allocation, row.uuid)
                held.place = {**(held.place or {}), "mem_mb": given}

            lab.state.write(give)
        second = lab.submit(ita=30, max_gpus=1, deadline_s=None, model=str(models["larger"]), model_name="larger")
        lab.run(120)
        assert lab.job(second).state == JobState.DONE
        assert len(lab.site.submitted) == (1 if switches else 2)
