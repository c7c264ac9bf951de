"""The Slurm backend on a real cluster, beyond test_contract.py: what it asks of Slurm, and how often."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import slurm_entry
from contract_sites import RealContractSite
from slurm_cluster import Cluster

from prompttuner.slurm.backend import SubmitRefused
from prompttuner.slurm.observe import VANISHED
from prompttuner.slurm.slurm_backend import SlurmBackend
from prompttuner.slurm.words import Native

pytestmark = pytest.mark.slurm


def make_site(home: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> tuple[RealContractSite, SlurmBackend]:
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm_entry.__file__).parent))
    site = RealContractSite(home, cluster)
    assert isinstance(site.backend, SlurmBackend)
    return site, site.backend


def test_job_has_its_gpu_its_name_and_a_small_private_pickle(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, _ = make_site(tmp_path, slurm, monkeypatch)
    request, number, seen = site.start()
    assert seen.start_at is not None and abs(seen.start_at - time.time()) < 600, "times are UTC whatever the zone"
    shown = slurm.run("scontrol", "show", "job", number)
    assert f"Comment={request.uuid}" in shown
    assert "Requeue=0" in shown
    assert "gres:gpu:1" in shown or "gres/gpu=1" in shown
    pickle = next((request.folder / "submitit").glob("*_submitted.pkl"))
    assert pickle.stat().st_size < 1000, "only the entry point and the path of the settings"
    assert pickle.stat().st_mode & 0o077 == 0


def test_many_are_observed_with_one_call(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, backend = make_site(tmp_path, slurm, monkeypatch)
    requests = [site.request() for _ in range(6)]
    known = [(request.uuid, backend.submit(request)) for request in requests]
    before = backend.client.calls
    seen = backend.observe(known)
    assert backend.client.calls == before + 1
    assert {one.state for one in seen.values()} <= {Native.PENDING, Native.RUNNING}
    backend.cancel([number for _, number in known])
    assert backend.client.calls == before + 2
    for request, (_, number) in zip(requests, known, strict=True):
        assert site.wait(request, number, Native.ENDED).native_state.startswith("CANCELLED")


def test_option_that_sbatch_does_not_know_is_refused(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, backend = make_site(tmp_path, slurm, monkeypatch)
    with pytest.raises(SubmitRefused):
        backend.submit(site.request(options={"no-such-option": "1"}))
    assert slurm.run("squeue", "-h").strip() == ""


def test_surrounding_job_does_not_leak(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "64", "SBATCH_PARTITION": "nowhere", "SLURM_TIME_FORMAT": "relative",
        "SBATCH_JOB_NAME": "stolen", "SQUEUE_FORMAT": "%A",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    site, backend = make_site(tmp_path, slurm, monkeypatch)
    request = site.request()
    assert site.wait(request, backend.submit(request), Native.RUNNING).start_at is not None


def test_sacct_is_not_asked_again_where_there_is_no_accounting(
    bare_slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, backend = make_site(tmp_path, bare_slurm, monkeypatch)
    assert backend.observe([("ghost", "987654")])["ghost"].native_state == VANISHED
    calls = backend.client.calls
    backend.observe([("other", None)])
    assert backend.client.calls == calls + 1
