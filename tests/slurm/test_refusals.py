"""Slurm says no, or does not say anything: the tick goes on in time, the words are kept, and they say what to set."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from contract_sites import RealContractSite
from lab import Lab, scratch_root
from slurm_cluster import Cluster

from prompttuner.cli.frame.root import run
from prompttuner.slurm.backend import Native, SubmitTimeout
from prompttuner.slurm.refusals import what_to_set
from prompttuner.slurm.submit import classify
from prompttuner.states import JobState


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "slurm.account"),
        ("Batch job submission failed: Invalid qos specification", "slurm.qos"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "walltime_s"),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)", "max_jobs"),
        ("Batch job submission failed: Memory specification can not be satisfied", "slurm.mem"),
        ("Batch job submission failed: Requested node configuration is not available", "slurm.gpu_type"),
        ("Batch job submission failed: Invalid feature specification", "slurm.constraint"),
        ("something else", "doctor"),
    ],
)
def test_a_refusal_says_what_to_set(said: str, setting: str) -> None:
    assert setting in what_to_set(said)


def test_a_call_that_was_ended_keeps_what_was_said() -> None:
    error = classify(-9, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", 30.0)
    assert isinstance(error, SubmitTimeout)
    assert "30 s (slurm.call_timeout_s)" in str(error)
    assert "temporarily unable to accept job" in str(error)


@pytest.mark.parametrize("policy", ["prompttuner", "edf"])
def test_while_every_submission_is_refused_jobs_wait_for_that_reason(policy: str, tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), policy, backend="slurm", max_gpus=1, slurm={"walltime_s": 7200}) as lab,
    ):
        lab.site.refuse = 1000
        jobs = [lab.submit(ita=50, deadline_s=None), lab.submit(ita=50, deadline_s=900)]
        lab.run(30)
        for job in jobs:
            assert "Slurm took no allocation at 1970-01-1" in lab.job(job).note
            assert "QOSMaxSubmitJobPerUserLimit" in lab.job(job).note
        lab.site.refuse = 0
        lab.run(600, every=2.0)
        assert {lab.job(job).state for job in jobs} == {JobState.DONE}


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_full_slurm_blocks_a_submission_no_longer_than_its_bound(
    bare_slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slurm_entry

    monkeypatch.setenv("PYTHONPATH", str(Path(slurm_entry.__file__).parent))
    site = RealContractSite(tmp_path, bare_slurm)
    conf = bare_slurm.prefix / "slurm.conf"
    before = conf.read_text()
    request, native, _ = site.start()
    conf.write_text(before + "MaxJobCount=2\n")
    bare_slurm.restart_slurmctld()
    try:
        site.wait(request, native, Native.RUNNING)
        late = site.request()
        began = time.monotonic()
        with pytest.raises(SubmitTimeout, match="unable to accept job"):
            site.slurm_backend(call_timeout_s=4).submit(late)
        assert time.monotonic() - began < 60
        assert site.see(late, None).state == Native.UNKNOWN, "nothing was submitted"
    finally:
        conf.write_text(before)
        bare_slurm.restart_slurmctld()
    time.sleep(3)
    assert site.see(late, None).state == Native.UNKNOWN, "nor later by an sbatch that lives on"


@pytest.mark.slurm
def test_doctor_asks_slurm_with_the_very_script(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f"--home={tmp_path / 'home'}", "--set=backend=slurm"]
    run([*flags, "doctor"])
    assert "Slurm would take an allocation" in capsys.readouterr().out
    assert run([*flags, "--set=slurm.constraint=nowhere", "doctor"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Slurm would refuse an allocation" in said
    assert "slurm.constraint" in said
    assert slurm.run("squeue", "-h", "-o", "%j").split() == [], "nothing was started"
