"""What the controller may expect of Slurm: the same scenarios on the real one and on the fake that its tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
import slurm_entry
from contract_sites import WALLTIME_S, ContractSite, FakeContractSite, RealContractSite

from prompttuner.errors import BackendError
from prompttuner.slurm.backend import NO_ANSWER, EndSource, SubmitRefused, SubmitUnknown
from prompttuner.slurm.observe import EXITED, NOT_FOUND, VANISHED
from prompttuner.slurm.words import Native

BOTH = ["fake", pytest.param("real", marks=pytest.mark.slurm)]
NO_SUCH_ID = "987654"


@pytest.fixture(params=BOTH)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContractSite:
    return _site(request, "slurm", tmp_path, monkeypatch)


@pytest.fixture(params=BOTH)
def bare_site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContractSite:
    """Without accounting."""
    return _site(request, "bare_slurm", tmp_path, monkeypatch)


def _site(request: pytest.FixtureRequest, cluster: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> ContractSite:
    if request.param == "fake":
        return FakeContractSite(home, accounting=cluster == "slurm")
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm_entry.__file__).parent))
    return RealContractSite(home, request.getfixturevalue(cluster))


def test_runs_and_ends(site: ContractSite) -> None:
    request, native, seen = site.start()
    assert (seen.native_id, seen.native_state, seen.reason) == (native, "RUNNING", "")
    assert seen.node in {"n1", "n2", "n3", "n4"}
    assert seen.start_at is not None and seen.ends_at is not None
    assert abs(seen.ends_at - seen.start_at - WALLTIME_S) < 2
    site.finish(request)
    ended = site.wait(request, native, Native.ENDED)
    assert (ended.native_id, ended.native_state, ended.node) == (native, "COMPLETED", seen.node)
    assert (ended.end_source, ended.start_at) == (EndSource.MANAGER, seen.start_at)
    assert ended.ends_at is not None and 0 <= ended.ends_at - seen.start_at < WALLTIME_S


def test_one_that_finds_no_free_gpu_waits_and_then_runs(site: ContractSite) -> None:
    taken = site.fill()
    request = site.request()
    native = site.backend.submit(request)
    seen = site.wait(request, native, Native.PENDING)
    assert (seen.native_id, seen.native_state, seen.node) == (native, "PENDING", None)
    for _ in range(5):
        site.pass_time()
        assert site.see(request, native).state == Native.PENDING
    site.backend.cancel(taken[:1])
    assert site.wait(request, native, Native.RUNNING).node is not None


def test_held_one_waits_until_it_is_released(site: ContractSite) -> None:
    taken = site.fill()
    request = site.request()
    native = site.backend.submit(request)
    site.hold(native)
    assert site.wait(request, native, Native.PENDING).reason == "JobHeldUser"
    site.backend.cancel(taken)
    for _ in range(10):
        site.pass_time()
        assert site.see(request, native).state == Native.PENDING
    site.release(native)
    site.wait(request, native, Native.RUNNING)


def test_cancelled_ones_end_whether_they_wait_or_run_and_gone_ones_are_no_error(site: ContractSite) -> None:
    runs = site.start(gpus=2)
    waits = site.request(options={"partition": "spare"})
    number = site.backend.submit(waits)
    site.hold(number)
    site.backend.cancel([runs[1], number])
    for request, native in ((runs[0], runs[1]), (waits, number)):
        assert site.wait(request, native, Native.ENDED).native_state == "CANCELLED"
    site.backend.cancel([runs[1], number, NO_SUCH_ID])


def test_cancelled_one_that_ignores_term_is_not_ended_before_its_program_is_gone(site: ContractSite) -> None:
    request, native, _ = site.start(ignore_term=True)
    site.backend.cancel([native])
    assert site.wait(request, native, Native.ENDED).native_state == "CANCELLED"
    assert not site.program_lives(request, native)


def test_program_that_is_killed_is_a_failure(site: ContractSite) -> None:
    request, native, _ = site.start()
    site.kill_program(request, native)
    assert site.wait(request, native, Native.ENDED).native_state == "FAILED"


def test_end_of_the_walltime(site: ContractSite) -> None:
    request, native, _ = site.start()
    site.end_walltime(native)
    assert site.wait(request, native, Native.ENDED).native_state == "TIMEOUT"


def test_preempted_one_is_ended_and_not_requeued(site: ContractSite) -> None:
    request, native, seen = site.start(gpus=2, options={"partition": "spare"})
    site.preempt(native, str(seen.node))
    assert site.wait(request, native, Native.ENDED).native_state == "PREEMPTED"
    for _ in range(10):
        site.pass_time()
        assert site.see(request, native).state == Native.ENDED
    assert site.see(request, None).native_id == native, "there is no second one of its name"


def test_silent_node_proves_nothing_until_slurm_declares_it_down(site: ContractSite) -> None:
    request, native, seen = site.start()
    with site.node_lost(native, str(seen.node)):
        assert site.see(request, native).state == Native.RUNNING
        site.notice(str(seen.node))
        assert site.wait(request, native, Native.ENDED).native_state == "NODE_FAIL"


def test_cancelled_one_on_a_silent_node_is_completing_until_it_is_declared_down(site: ContractSite) -> None:
    request, native, seen = site.start()
    with site.node_lost(native, str(seen.node)):
        site.backend.cancel([native])
        seen = site.wait(request, native, Native.COMPLETING, Native.ENDED)
        assert (seen.state, seen.native_state) == (Native.COMPLETING, "COMPLETING")
        site.notice(str(seen.node))
        assert site.wait(request, native, Native.ENDED).native_state == "CANCELLED"


def test_unknown_id_has_vanished_and_unknown_name_is_only_unknown(site: ContractSite) -> None:
    request = site.request()
    seen = site.see(request, NO_SUCH_ID)
    assert (seen.state, seen.native_state) == (Native.ENDED, VANISHED)
    seen = site.see(request, None)
    assert (seen.state, seen.native_state) == (Native.UNKNOWN, NOT_FOUND)


def test_id_that_now_belongs_to_another_job_has_vanished(site: ContractSite) -> None:
    other = site.request()
    native = site.backend.submit(other)
    seen = site.see(site.request(), native)
    assert (seen.state, seen.native_state) == (Native.ENDED, VANISHED)
    assert site.wait(other, native, Native.PENDING, Native.RUNNING).native_id == native


def test_controller_away_is_no_answer_and_proves_nothing(site: ContractSite) -> None:
    request, native, _ = site.start()
    gone, number, _ = site.start()
    with site.controller_away():
        seen = site.see(request, native)
        assert (seen.state, seen.native_state) == (Native.UNKNOWN, NO_ANSWER)
        (gone.folder / "exit.json").write_text('{"reason": "idle"}')
        seen = site.see(gone, number)
        assert (seen.state, seen.native_state, seen.reason) == (Native.ENDED, EXITED, "idle"), "its own word counts"
        with pytest.raises(SubmitUnknown):
            site.backend.submit(site.request())
        with pytest.raises(BackendError):
            site.backend.cancel([native])
    assert site.wait(request, native, Native.RUNNING).native_id == native


def test_refusal_starts_nothing(site: ContractSite) -> None:
    request = site.request(options={"partition": "nowhere"})
    with pytest.raises(SubmitRefused, match="partition"):
        site.backend.submit(request)
    assert site.see(request, None).state == Native.UNKNOWN


def test_lost_answer_is_found_by_name_and_its_program_runs(site: ContractSite) -> None:
    request = site.request()
    with site.answers_lost(arrives=True), pytest.raises(SubmitUnknown):
        site.backend.submit(request)
    seen = site.wait(request, None, Native.RUNNING)
    assert seen.native_id is not None
    site.wait_started(request)
    assert site.see(request, seen.native_id).state == Native.RUNNING


def test_lost_submission_is_not_found_by_name(site: ContractSite) -> None:
    request = site.request()
    with site.answers_lost(arrives=False), pytest.raises(SubmitUnknown):
        site.backend.submit(request)
    for _ in range(5):
        seen = site.see(request, None)
        assert (seen.state, seen.native_state) == (Native.UNKNOWN, NOT_FOUND)
        site.pass_time()


def test_of_a_doubled_submission_the_living_one_is_found_by_name(site: ContractSite) -> None:
    request, first, _ = site.start()
    second = site.backend.submit(request)
    assert second != first
    site.wait(request, second, Native.RUNNING)
    site.backend.cancel([first])
    assert site.wait(request, first, Native.ENDED).native_state == "CANCELLED"
    assert site.see(request, None).native_id == second
    site.backend.cancel([second])
    assert site.wait(request, None, Native.ENDED).native_state == "CANCELLED"


def test_what_squeue_has_forgotten_accounting_knows_and_without_it_nothing_is_proved(site: ContractSite) -> None:
    with site.forgetful():
        request, native, _ = site.start()
        site.finish(request)
        site.wait_forgotten(native)
        (request.folder / "status.json").write_text("{}")  # its agent has just been heard of
        with site.accounting_away():
            seen = site.see(request, native)
            assert (seen.state, seen.native_state) == (Native.UNKNOWN, NOT_FOUND)
        assert site.wait(request, native, Native.ENDED).native_state == "COMPLETED"
        assert site.see(request, None).native_id == native, "by name too"


def test_without_accounting_the_agents_silence_and_slurms_word_prove_an_end(bare_site: ContractSite) -> None:
    site = bare_site
    with site.forgetful():
        request, native, _ = site.start()
        site.finish(request)
        site.wait_forgotten(native)
        status = request.folder / "status.json"
        status.write_text("{}")
        seen = site.see(request, native)
        assert (seen.state, seen.native_state) == (Native.UNKNOWN, NOT_FOUND), "its agent has just been heard of"
        status.unlink()
        seen = site.see(request, native)
        assert (seen.state, seen.native_state) == (Native.ENDED, VANISHED)
        (request.folder / "exit.json").write_text('{"reason": "idle"}')
        seen = site.see(request, native)
        assert (seen.state, seen.native_state, seen.reason) == (Native.ENDED, EXITED, "idle")
        assert site.see(site.request(), None).native_state == NOT_FOUND
