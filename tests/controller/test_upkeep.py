"""Telling, counting and forgetting: hooks on deadlines, Prometheus figures, retention."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from lab import Lab
from row_tools import all_jobs

from prompttuner.controller.upkeep import deadlines as notify
from prompttuner.controller.upkeep import hooks
from prompttuner.controller.upkeep import retention as housekeeping
from prompttuner.controller.upkeep.metrics import Metrics
from prompttuner.db.queries import events
from prompttuner.states import JobState

HOOK = "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write(sys.stdin.read() + '\\n')"


BODY = hooks.HookBody(event="deadline.missed", job="j1")


def with_settings(lab: Lab, **changes: Any) -> None:
    lab.settings = lab.settings.model_copy(update=changes)
    lab.crash()


def test_a_missed_deadline_is_told_once_by_command_and_webhook(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_S", 120.0)
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    script, out = tmp_path / "hook.py", tmp_path / "told"
    script.write_text(HOOK)
    with_settings(
        lab,
        command_hook=f"{sys.executable} {script} {out}",
        webhook=f"http://127.0.0.1:{server.server_port}/x",
    )
    job_id = lab.submit(ita=150, deadline_s=8.0)
    lab.run(30)
    lab.crash()
    lab.crash()
    lab.run(30)
    server.shutdown()
    told = [json.loads(line) for line in out.read_text().splitlines()]
    missed = [entry for entry in told if entry["event"] == "deadline.missed"]
    assert [entry["job"] for entry in missed] == [job_id]
    assert [entry["job"] for entry in posted if entry["event"] == "deadline.missed"] == [job_id]
    assert lab.job(job_id).state == JobState.DONE


def test_a_hook_that_fails_is_a_warning_and_the_job_goes_on(lab: Lab) -> None:
    with_settings(lab, command_hook="/nonexistent/hook")
    job_id = lab.submit(ita=60, deadline_s=5.0)
    lab.run(60)
    assert lab.job(job_id).state == JobState.DONE
    assert any("nobody could be told" in text for text in lab.warnings)


def told(lab: Lab) -> list[tuple[str, str]]:
    """(job, kind) of all that was told of deadlines, oldest first."""
    rows = lab.store.query(events.latest)
    return [(row.job_id, row.kind.partition(".")[2]) for row in reversed(rows) if row.kind.startswith("deadline.")]


def test_a_deadline_missed_by_a_job_that_ends_between_two_ticks_is_told(lab: Lab) -> None:
    """As with cron: no tick ever sees the job late and active."""
    late, in_time = lab.submit(ita=200, deadline_s=60.0), lab.submit(ita=150, deadline_s=900.0)
    lab.run(15)
    assert [lab.job(job).state for job in (late, in_time)] == [JobState.RUNNING] * 2
    for _ in range(200):
        lab.site.step(1.0)
    lab.tick()
    lab.tick()
    assert [lab.job(job).state for job in (late, in_time)] == [JobState.DONE] * 2
    assert [job for job, kind in told(lab) if kind == "missed"] == [late]


def test_jobs_that_end_without_a_result_in_time_are_told_unless_cancelled(lab: Lab) -> None:
    stopped = lab.submit(ita=900, max_iterations=1000, deadline_s=15.0, on_miss="stop")
    exhausted = lab.submit(ita=900, max_iterations=20)
    cancelled = lab.submit(ita=900, max_iterations=1000)
    lab.run(5)
    lab.ask("cancel", job=cancelled)
    lab.run(60)
    assert [lab.job(job).state for job in (stopped, exhausted)] == [JobState.STOPPED, JobState.EXHAUSTED]
    assert sorted(job for job, kind in told(lab) if kind == "missed") == [stopped, exhausted]


def test_what_a_killed_controller_did_not_tell_the_next_one_tells(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = lab.submit(ita=900, max_iterations=20)
    with monkeypatch.context() as patch:
        patch.setattr(notify.Deadlines, "tell", lambda *_: 0)
        lab.run(60)
    assert lab.job(job_id).state == JobState.EXHAUSTED and told(lab) == []
    lab.crash()
    lab.tick()
    lab.tick()
    assert told(lab) == [(job_id, "missed")]


def test_a_hook_that_fails_or_answers_nonsense_keeps_no_other_from_being_run(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_S", 120.0)
    mails = tmp_path / "bin" / "sendmail"
    mails.parent.mkdir()
    mails.write_text(f"#!/bin/sh\ncat >> {tmp_path}/mails\n")
    mails.chmod(0o755)
    monkeypatch.setenv("PATH", f"{mails.parent}:{os.environ['PATH']}")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"good morning\r\n\r\n")

        Thread(target=answer, daemon=True).start()
        with_settings(
            lab, command_hook="false", webhook=f"http://127.0.0.1:{server.getsockname()[1]}/", mail="ada@example.org"
        )
        job_id = lab.submit(ita=900, max_iterations=20)
        lab.run(60)
    assert lab.job(job_id).state == JobState.EXHAUSTED
    assert f"prompttuner: deadline.missed {job_id}" in (tmp_path / "mails").read_text()
    assert sum("nobody could be told" in text for text in lab.warnings) == 2


def wait_until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 120
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def hook_that(tmp_path: Path, body: str) -> str:
    """A command hook that notes what it was told, then does ``body``."""
    script = tmp_path / "hook.sh"
    script.write_text(f"#!/bin/sh\ncat >> {tmp_path}/told\necho >> {tmp_path}/told\n{body}\n")
    script.chmod(0o755)
    return str(script)


def told_by_hook(tmp_path: Path) -> list[str]:
    """Jobs of which a missed deadline was told, in order."""
    lines = (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []
    return [entry["job"] for entry in map(json.loads, lines) if entry["event"] == "deadline.missed"]


@pytest.mark.parametrize("killed_in", ["run_hook", "_note"])
def test_a_controller_killed_before_it_noted_that_it_told_leaves_that_to_the_next(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """Before the hook: told once. After it: told twice, as nobody can know."""
    monkeypatch.setattr(hooks, "HOOK_S", 120.0)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> str:
        raise Killed

    with_settings(lab, command_hook=hook_that(tmp_path, ""))
    job_id = lab.submit(ita=900, max_iterations=20)
    with monkeypatch.context() as patch:
        patch.setattr(notify, killed_in, die)
        with pytest.raises(Killed):
            lab.run(60)
    lab.crash()
    lab.tick()
    lab.crash()
    lab.tick()
    assert told_by_hook(tmp_path) == [job_id] * (1 if killed_in == "run_hook" else 2)
    rows = [row.kind for row in lab.store.query(events.latest) if row.job_id == job_id]
    assert rows.count("deadline.missed") == rows.count("hook.told") == 1


def test_a_hook_that_fails_is_run_again_a_minute_later_until_it_succeeds_or_five_times(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_S", 120.0)
    with_settings(lab, command_hook=hook_that(tmp_path, f"test -e {tmp_path}/mended"))
    first = lab.submit(ita=900, max_iterations=20)
    lab.run(40)
    assert told_by_hook(tmp_path) == [first]
    lab.crash()  # tries are counted in the database: cron's ticks are a process each
    lab.crash()
    lab.run(40)
    assert told_by_hook(tmp_path) == [first] * 2
    (tmp_path / "mended").touch()
    lab.run(150, every=5.0)
    assert told_by_hook(tmp_path) == [first] * 3
    (tmp_path / "mended").unlink()
    second = lab.submit(ita=900, max_iterations=20)
    lab.run(600, every=5.0)
    assert told_by_hook(tmp_path) == [first] * 3 + [second] * 5


def test_a_hook_that_hangs_is_ended_with_its_children_and_holds_up_one_tick_only(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "child"

    def wait_and_give_up(self: subprocess.Popen[bytes], _text: bytes, timeout: float) -> None:
        assert wait_until(note.exists)
        raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", wait_and_give_up)
    script = f"sleep 1000 & echo $! > {note}.new; mv {note}.new {note}; wait"
    with_settings(lab, command_hook=shlex.join(["sh", "-c", script]))
    for _ in range(3):
        lab.submit(ita=900, max_iterations=20)
    lab.run(30)
    status = Path(f"/proc/{note.read_text().strip()}/cmdline")
    assert wait_until(lambda: not status.exists() or not status.read_bytes())
    failed = [row for row in lab.store.query(events.latest) if row.kind == "hook.failed"]
    assert len(failed) == 1 and "did not end within" in failed[0].cause


@pytest.mark.parametrize("body", ["exit 3", "sleep 60"])
def test_what_is_noted_of_a_failed_hook_does_not_repeat_its_command(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    if body != "exit 3":
        monkeypatch.setattr(hooks, "HOOK_S", 0.5)
    with_settings(lab, command_hook=shlex.join(["sh", "-c", body, "token-of-ada"]))
    lab.submit(ita=900, max_iterations=1000, deadline_s=5.0, max_gpus=1)
    lab.run(10)
    (failed,) = [row for row in lab.store.query(events.latest) if row.kind == "hook.failed"]
    assert "command_hook: it " in failed.cause and "token-of-ada" not in failed.cause
    assert not any("token-of-ada" in text for text in lab.warnings)


def test_a_webhook_that_is_sent_elsewhere_or_answers_too_slowly_counts_as_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Followed, a POST would become a GET without a word of the message."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(301)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    moved = hooks.run_hook("webhook", f"http://127.0.0.1:{server.server_port}/x", BODY)
    server.shutdown()
    assert moved is not None and "301" in moved
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hooks, "HOOK_S", 0.2)
        monkeypatch.setattr(socket.socket, "settimeout", lambda *_: None)
        late = hooks.run_hook("webhook", f"http://127.0.0.1:{silent.getsockname()[1]}/x", BODY)
    assert late is not None and "within 0.2 seconds" in late


def test_what_went_wrong_with_a_hook_tells_no_secret_of_it() -> None:
    texts = [
        hooks.run_hook("command_hook", "sh -c 'exit 3' s3cret", BODY),
        hooks.run_hook("webhook", "http://127.0.0.1:1/s3cret path", BODY),
        hooks.run_hook("webhook", "ftp://example.org/s3cret", BODY),
        hooks.run_hook("webhook", "http://[half/s3cret", BODY),
    ]
    assert all(text and "s3cret" not in text for text in texts)
    assert "status 3" in str(texts[0])


def test_figures_are_written_to_a_file_that_the_exporter_can_read(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "prompttuner.prom"
    with_settings(lab, metrics_file=path)
    lab.controller.metrics = Metrics()
    lab.submit(ita=500, max_iterations=500)
    lab.run(10)
    text = path.read_text()
    assert 'prompttuner_jobs{state="running"} 1.0' in text
    assert "prompttuner_gpus_held" in text
    assert path.stat().st_mode & 0o777 == 0o644


def test_figures_are_served_on_loopback_only(lab: Lab) -> None:
    metrics = Metrics()
    server = metrics.serve(0)
    host, port = server.server_address[:2]
    assert host == "127.0.0.1"
    lab.controller.metrics = metrics
    lab.tick()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        assert b"prompttuner_tick_seconds" in answer.read()
    server.shutdown()


def test_purge_removes_folder_and_row_of_an_ended_job_only(lab: Lab) -> None:
    done, running = lab.submit(ita=10), lab.submit(ita=900, max_iterations=1000)
    lab.run(30)
    assert not lab.ask("purge", job=running)["ok"]
    assert lab.ask("purge", job=done)["ok"]
    lab.tick()
    assert not lab.spool.job(done).exists() and lab.spool.job(running).exists()
    left = lab.store.query(all_jobs)
    assert [row.id for row in left] == [running]


def test_many_jobs_are_purged_with_one_request_and_only_if_all_have_ended(lab: Lab) -> None:
    done = [lab.submit(ita=10) for _ in range(3)]
    running = lab.submit(ita=900, max_iterations=1000)
    lab.run(60)
    assert not lab.ask("purge", jobs=[*done, running])["ok"]
    assert all(lab.spool.job(name).exists() for name in done)
    assert lab.ask("purge", jobs=[*done, "jgone"])["ok"]
    assert not any(lab.spool.job(name).exists() for name in done)
    assert [row.id for row in lab.store.query(all_jobs)] == [running]
    kinds = [row.kind for row in lab.store.query(events.latest)]
    assert kinds.count("purge") == kinds.count("job.purged") == 3


def test_old_folders_rows_and_replies_are_forgotten(lab: Lab) -> None:
    job_id = lab.submit(ita=10)
    lab.run(200)
    reply = next(lab.spool.replies.iterdir())
    agents = list(lab.spool.agents.iterdir())
    assert agents and lab.spool.job(job_id).exists()
    long_ago = lab.site.time - 1000
    for path in [reply, *agents]:
        os.utime(path, (long_ago, long_ago))
    lab.pass_days(40)
    assert not lab.spool.job(job_id).exists() and not reply.exists() and not any(p.exists() for p in agents)
    assert lab.store.query(all_jobs) == []
    assert any(row.kind == "store.pruned" for row in lab.store.query(events.latest))


def test_a_clock_that_jumps_ahead_removes_nothing_and_is_told_of(lab: Lab) -> None:
    job_id = lab.submit(ita=10)
    lab.run(60)
    lab.site.time += 40 * 86400
    for _ in range(3):  # a few hours later it still may be wrong
        lab.tick()
        lab.site.time += 3700
    assert (lab.spool.job(job_id) / "result").is_dir() and lab.job(job_id).state == JobState.DONE
    assert any("40 days ahead of the last clean-up" in text for text in lab.warnings)
    lab.site.time -= 40 * 86400  # put right
    lab.tick()
    assert (lab.spool.job(job_id) / "result").is_dir()
    lab.pass_days(40)
    assert not lab.spool.job(job_id).exists(), "time that goes by as it should makes things old"


def test_a_clock_that_stays_ahead_for_a_day_is_believed(lab: Lab) -> None:
    job_id = lab.submit(ita=10)
    lab.run(60)
    lab.site.time += 40 * 86400
    lab.tick()
    lab.pass_days(1.1)
    assert not lab.spool.job(job_id).exists()


def test_too_much_waste_is_removed_checkpoints_first(lab: Lab) -> None:
    first, second = lab.submit(ita=10), lab.submit(ita=12)
    lab.run(40)
    for job_id in (first, second):
        (next(lab.spool.job(job_id).glob("g*")) / "big").write_bytes(b"x" * 3_000_000)
    with_settings(lab, keep_mb=4.0)
    lab.site.time += 7200
    lab.tick()
    left = [job_id for job_id in (first, second) if list(lab.spool.job(job_id).glob("g*/big"))]
    assert len(left) == 1
    assert all((lab.spool.job(job_id) / "result").is_dir() for job_id in (first, second))


def test_agents_folders_go_before_results_when_space_is_short(lab: Lab) -> None:
    job_id = lab.submit(ita=10)
    lab.run(200, every=5.0)
    (agent,) = list(lab.spool.agents.iterdir())
    (agent / "log.txt").write_bytes(b"x" * 3_000_000)
    with_settings(lab, keep_mb=1.0)
    lab.site.time += 7200
    lab.tick()
    assert not agent.exists() and (lab.spool.job(job_id) / "result").is_dir()


def test_folders_removed_by_hand_or_closed_to_us_disturb_no_cleaning(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, closed, kept = lab.submit(ita=10), lab.submit(ita=10), lab.submit(ita=10)
    lab.run(60)
    shutil.rmtree(lab.spool.job(gone))
    shut = lab.spool.job(closed) / "shut"
    shut.mkdir()
    (lab.spool.job(kept) / "result" / "big").write_bytes(b"x" * 3_000_000)
    plain = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == str(shut):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may look into everything
    with_settings(lab, keep_mb=1.0)
    lab.site.time += 7200
    lab.tick()
    assert not lab.spool.job(kept).exists()
    assert lab.job(gone).state == lab.job(kept).state == JobState.DONE
    with_settings(lab, keep_days=0.01)
    lab.site.time += 7200
    lab.tick()
    assert lab.store.query(all_jobs) == []


def test_logs_and_scraps_are_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "LOG_BYTES", 1000)
    logs = lab.settings.logs_dir
    logs.mkdir(exist_ok=True)
    (logs / "tick.log").write_bytes(b"a" * 700 + b"b" * 500)
    old = [logs / "controller-7.log", lab.spool.inbox / "x.json.broken", lab.spool.inbox / ".y.json.1.abcd"]
    kept = [logs / "controller-8.log", logs / "controller.sh", lab.spool.inbox / "z.json.broken"]
    for path in [*old, *kept]:
        path.touch()
        os.utime(path, (lab.site.time - 40 * 86400,) * 2 if path in old else None)
    os.utime(kept[1], (lab.site.time - 40 * 86400,) * 2)
    lab.tick()
    assert not [path for path in old if path.exists()]
    assert all(path.exists() for path in kept)
    assert (logs / "tick.log").read_bytes() == b""
    assert (logs / "tick.log.1").read_bytes() == b"b" * 500


def test_a_purge_that_was_cut_short_goes_on_without_another_request(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    done = lab.submit(ita=10)
    lab.run(30)
    with monkeypatch.context() as patch:
        patch.setattr(housekeeping.Retention, "purge_asked", lambda *_: 0)
        assert lab.ask("purge", job=done)["ok"]
    lab.crash()
    lab.tick()
    assert not lab.spool.job(done).exists()
    assert lab.store.query(all_jobs) == []


def test_a_purge_follows_no_link_and_tries_again_what_cannot_be_removed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, linked = lab.submit(ita=10), lab.submit(ita=10)
    lab.run(40)
    others = tmp_path / "others"
    others.mkdir()
    (others / "precious").touch()
    (lab.spool.job(done) / "link").symlink_to(others)
    lab.spool.job(linked).rename(lab.settings.home / "moved")
    lab.spool.job(linked).symlink_to(others)
    real, stuck = shutil.rmtree, [True]

    def rmtree(path: Path, **_: object) -> None:
        if stuck:
            raise PermissionError(13, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(housekeeping.shutil, "rmtree", rmtree)
    for job in (done, linked):
        assert lab.ask("purge", job=job)["ok"]
    assert [row.id for row in lab.store.query(all_jobs)] == [done]
    assert any("cannot be removed" in text for text in lab.warnings)
    stuck.clear()
    lab.run(80, every=20.0)
    assert lab.store.query(all_jobs) == []
    assert not lab.spool.job(done).exists() and not lab.spool.job(linked).is_symlink()
    assert (others / "precious").exists()
