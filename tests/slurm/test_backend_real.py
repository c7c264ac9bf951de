"""The Slurm backend on a real cluster: submit, observe, cancel, and what Slurm does behind one's back."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest
import slurm_entry
from slurm_cluster import Cluster

from prompttuner.config import Settings, SlurmSettings
from prompttuner.slurm.backend import NO_ANSWER, AllocationRequest, Native, Seen, SubmitRefused, SubmitUnknown
from prompttuner.slurm.observe import EXITED, NOT_FOUND, VANISHED
from prompttuner.slurm.slurm_backend import SlurmBackend

pytestmark = pytest.mark.slurm


class Harness:
    """A backend and its spool folder, with allocations that run ``slurm_entry``."""

    def __init__(self, home: Path, **slurm: object) -> None:
        self.settings = Settings(home=home, backend="slurm", slurm=SlurmSettings(**slurm))
        self.backend = SlurmBackend(self.settings, entry=slurm_entry.main)

    def request(self, sleep: float = 300, ignore_term: bool = False, **fields: object) -> AllocationRequest:
        name = str(uuid.uuid4())
        folder = self.settings.spool_dir / "agents" / name
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({"sleep": sleep, "ignore_term": ignore_term}))
        defaults: dict[str, object] = {"pool": "m", "gpus": 1, "gpu_type": None, "walltime_s": 600}
        return AllocationRequest(uuid=name, folder=folder, **{**defaults, **fields})  # type: ignore[arg-type]

    def wait(self, name: str, number: str | None, *states: Native, timeout: float = 180) -> Seen:
        deadline = time.monotonic() + timeout
        while True:
            seen = self.backend.observe([(name, number)])[name]
            if seen.state in states:
                return seen
            assert time.monotonic() < deadline, f"still {seen}, not {states}"
            time.sleep(0.1)


@pytest.fixture
def harness(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm_entry.__file__).parent))
    return Harness(tmp_path)


def test_runs_with_its_gpu_and_ends(harness: Harness, slurm: Cluster) -> None:
    request = harness.request()
    number = harness.backend.submit(request)
    seen = harness.wait(request.uuid, number, Native.RUNNING)
    assert seen.native_id == number
    assert seen.node in slurm.shape.node_names
    assert seen.ends_at is not None and seen.start_at is not None
    assert abs(seen.ends_at - seen.start_at - 600) < 2
    assert abs(seen.start_at - time.time()) < 600, "times are UTC whatever the zone"
    (request.folder / "finish").touch()
    assert harness.wait(request.uuid, number, Native.ENDED).native_state == "COMPLETED"
    shown = slurm.run("scontrol", "show", "job", number)
    assert f"Comment={request.uuid}" in shown
    assert "Requeue=0" in shown
    assert "gres:gpu:1" in shown or "gres/gpu=1" in shown
    pickle = next((request.folder / "submitit").glob("*_submitted.pkl"))
    assert pickle.stat().st_size < 1000, "only the entry point and the path of the settings"
    assert pickle.stat().st_mode & 0o077 == 0


def test_many_are_observed_with_one_call(harness: Harness) -> None:
    known = []
    for _ in range(6):
        request = harness.request()
        known.append((request.uuid, harness.backend.submit(request)))
    before = harness.backend.client.calls
    seen = harness.backend.observe(known)
    assert harness.backend.client.calls == before + 1
    assert {one.state for one in seen.values()} <= {Native.PENDING, Native.RUNNING}
    harness.backend.cancel([number for _, number in known])
    assert harness.backend.client.calls == before + 2
    for name, number in known:
        assert harness.wait(name, number, Native.ENDED).native_state.startswith("CANCELLED")


def test_lost_answer_is_found_by_name(harness: Harness) -> None:
    request = harness.request()
    number = harness.backend.submit(request)
    assert harness.wait(request.uuid, None, Native.RUNNING).native_id == number


def test_intent_that_never_arrived_stays_unknown(harness: Harness) -> None:
    seen = harness.backend.observe([("never-sent", None)])["never-sent"]
    assert (seen.state, seen.native_state) == (Native.UNKNOWN, NOT_FOUND)


def test_cancelled_one_that_ignores_term_is_completing_until_its_processes_are_gone(
    harness: Harness, slurm: Cluster
) -> None:
    request = harness.request(ignore_term=True)
    number = harness.backend.submit(request)
    harness.wait(request.uuid, number, Native.RUNNING)
    deadline = time.monotonic() + 180
    while not (request.folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    harness.backend.cancel([number])
    assert harness.wait(request.uuid, number, Native.COMPLETING, Native.ENDED).state is Native.COMPLETING
    harness.wait(request.uuid, number, Native.ENDED)
    harness.backend.cancel([number, "999999"])  # both are gone: no error


def test_refusal_is_told_from_a_lost_answer(harness: Harness, slurm: Cluster, tmp_path: Path) -> None:
    with pytest.raises(SubmitRefused, match="partition"):
        harness.backend.submit(harness.request(options={"partition": "nowhere"}))
    with pytest.raises(SubmitRefused):
        harness.backend.submit(harness.request(options={"no-such-option": "1"}))
    assert slurm.run("squeue", "-h").strip() == ""
    impatient = Harness(tmp_path / "other", call_timeout_s=1)
    slurm.stop_slurmctld()
    try:
        with pytest.raises(SubmitUnknown):
            impatient.backend.submit(impatient.request())
    finally:
        slurm.start_slurmctld()


def test_controller_away_means_unknown_and_back_means_known(harness: Harness, slurm: Cluster, tmp_path: Path) -> None:
    quick = Harness(tmp_path / "quick", call_timeout_s=2)
    request = quick.request()
    number = harness.backend.submit(request)
    slurm.stop_slurmctld()
    try:
        seen = quick.backend.observe([(request.uuid, number)])[request.uuid]
        assert (seen.state, seen.native_state) == (Native.UNKNOWN, NO_ANSWER)
        (request.folder / "exit.json").write_text('{"reason": "idle"}')
        seen = quick.backend.observe([(request.uuid, number)])[request.uuid]
        assert (seen.state, seen.native_state, seen.reason) == (Native.ENDED, EXITED, "idle")
    finally:
        slurm.start_slurmctld()
    harness.wait(request.uuid, number, Native.RUNNING)


def test_preempted_is_ended_and_not_requeued(harness: Harness, slurm: Cluster) -> None:
    request = harness.request(options={"partition": "spare"}, gpus=2)
    number = harness.backend.submit(request)
    node = harness.wait(request.uuid, number, Native.RUNNING).node
    slurm.run("sbatch", "-p", "gpu", "-w", str(node), "--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 30")
    seen = harness.wait(request.uuid, number, Native.ENDED)
    assert seen.native_state == "PREEMPTED"


def test_lost_node_is_ended(harness: Harness, slurm: Cluster) -> None:
    request = harness.request()
    number = harness.backend.submit(request)
    node = str(harness.wait(request.uuid, number, Native.RUNNING).node)
    slurm.kill_node(node)
    slurm.set_node(node, "down")
    try:
        assert harness.wait(request.uuid, number, Native.ENDED).native_state == "NODE_FAIL"
    finally:
        slurm.return_node(node)


def test_surrounding_job_does_not_leak(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "64", "SBATCH_PARTITION": "nowhere", "SLURM_TIME_FORMAT": "relative",
        "SBATCH_JOB_NAME": "stolen", "SQUEUE_FORMAT": "%A",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    request = harness.request()
    number = harness.backend.submit(request)
    seen = harness.wait(request.uuid, number, Native.RUNNING)
    assert seen.start_at is not None


def test_id_of_another_cluster_life_is_vanished_not_an_error(harness: Harness) -> None:
    seen = harness.backend.observe([("ghost", "987654")])["ghost"]
    assert (seen.state, seen.native_state) == (Native.ENDED, VANISHED)


def test_works_without_accounting(bare_slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm_entry.__file__).parent))
    harness = Harness(tmp_path)
    request = harness.request(sleep=1)
    number = harness.backend.submit(request)
    harness.wait(request.uuid, number, Native.ENDED)
    assert harness.backend.observe([("ghost", "987654")])["ghost"].native_state == VANISHED
    calls = harness.backend.client.calls
    harness.backend.observe([("other", None)])
    assert harness.backend.client.calls == calls + 1, "sacct is not asked again"
