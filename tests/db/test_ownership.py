"""One writer: who may take over, when, and that whoever lost it cannot write."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prompttuner.db import OwnerInfo, Store
from prompttuner.db.queries import events
from prompttuner.db.store.ownership import process_is_dead
from prompttuner.errors import NotOwner

ELSEWHERE = OwnerInfo(host="login2", pid=4242, command="prompttuner run", machine="another boot", pid_start="1")


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def note(name: str) -> list[events.NewEvent]:
    return [events.NewEvent("test.note", name)]


def test_the_second_is_told_who_owns_it(store: Store, url: str, tmp_path: Path) -> None:
    mine = store.acquire(ELSEWHERE)
    message = r"`prompttuner run` on login2, pid 4242, since 20\d\d-.*taken over in 60 s"
    with Store.open(url, notes_dir=tmp_path) as other, pytest.raises(NotOwner, match=message):
        other.acquire()
    store.transact(mine, lambda session: events.append(session, note("still mine"), 1.0))


def test_released_ownership_is_free_at_once_and_generations_grow(store: Store) -> None:
    generations = []
    for _ in range(3):
        mine = store.acquire(ELSEWHERE)
        generations.append(mine.generation)
        store.release(mine)
        with pytest.raises(NotOwner, match="released"):
            store.transact(mine, lambda session: None)
    assert generations == sorted(set(generations))


def test_release_of_a_lost_ownership_takes_nothing_away(store: Store) -> None:
    old = store.acquire(ELSEWHERE)
    store.release(old)
    new = store.acquire(ELSEWHERE)
    store.release(old)
    store.renew(new)


def test_who_was_taken_over_from_is_told_before_it_acts_outside_the_database(
    store: Store, url: str, tmp_path: Path
) -> None:
    gone = replace(OwnerInfo.of_this_process(), pid=2**22 + 1, pid_start="1")
    mine = store.acquire(gone)
    store.confirm(mine)
    with Store.open(url, notes_dir=tmp_path) as other:
        theirs = other.acquire(OwnerInfo.of_this_process("the other"))
        other.confirm(theirs)
        with pytest.raises(NotOwner, match="the other"):
            store.confirm(mine)
        other.release(theirs)
    with pytest.raises(NotOwner, match="released"):
        store.confirm(mine)


def test_a_silent_owner_elsewhere_is_taken_over_after_its_own_ttl(store: Store, url: str, tmp_path: Path) -> None:
    lost = store.acquire(ELSEWHERE, ttl_s=30.0)
    clock = Clock(1000.0)
    with Store.open(url, notes_dir=tmp_path, clock=clock) as taker:
        for now in (1000.0, 1029.0):
            clock.now = now
            with pytest.raises(NotOwner):
                taker.acquire(ttl_s=5.0)
        clock.now = 1030.0
        mine = taker.acquire(ttl_s=5.0)
        taker.transact(mine, lambda session: events.append(session, note("new owner"), 1.0))
    with pytest.raises(NotOwner, match="another controller"):
        store.transact(lost, lambda session: events.append(session, note("zombie"), 1.0))
    with pytest.raises(NotOwner), store.write(lost) as session:
        events.append(session, note("zombie"), 1.0)
    with pytest.raises(NotOwner):
        store.renew(lost)
    with store.read() as session:
        assert [row.cause for row in events.latest(session)] == ["new owner"]


def test_any_sign_of_life_starts_the_wait_anew(store: Store, url: str, tmp_path: Path) -> None:
    alive = store.acquire(ELSEWHERE, ttl_s=30.0)
    clock = Clock(0.0)
    with Store.open(url, notes_dir=tmp_path, clock=clock) as taker:
        for now in range(0, 200, 20):
            clock.now = float(now)
            with pytest.raises(NotOwner):
                taker.acquire()
            store.transact(alive, lambda session: None) if now % 40 else store.renew(alive)


def test_what_one_run_saw_the_next_run_remembers(store: Store, url: str, tmp_path: Path) -> None:
    store.acquire(ELSEWHERE, ttl_s=90.0)
    for now in (500.0, 560.0):
        with Store.open(url, notes_dir=tmp_path, clock=Clock(now)) as cron, pytest.raises(NotOwner):
            cron.acquire()
    with Store.open(url, notes_dir=tmp_path, clock=Clock(590.0)) as cron:
        assert cron.acquire().generation > 0


def test_a_reboot_of_the_taker_forgets_what_it_saw(store: Store, url: str, tmp_path: Path) -> None:
    store.acquire(ELSEWHERE, ttl_s=90.0)
    with Store.open(url, notes_dir=tmp_path, clock=Clock(500.0)) as before, pytest.raises(NotOwner):
        before.acquire()
    (notes,) = tmp_path.glob(".owner-seen.*.json")
    text = notes.read_text()
    notes.write_text(text.replace('"machine":"', '"machine":"earlier '))
    with Store.open(url, notes_dir=tmp_path, clock=Clock(9000.0)) as after, pytest.raises(NotOwner):
        after.acquire()
    notes.write_text("{broken")
    with Store.open(url, notes_dir=tmp_path, clock=Clock(9999.0)) as after, pytest.raises(NotOwner):
        after.acquire()


def test_waiting_takes_over_as_soon_as_it_may(store: Store, url: str, tmp_path: Path) -> None:
    lost = store.acquire(ELSEWHERE, ttl_s=1.5)
    with Store.open(url, notes_dir=tmp_path) as taker:
        mine = taker.acquire(wait_s=60.0)
    assert mine.generation > lost.generation


def test_a_killed_process_of_this_machine_is_replaced_at_once(store: Store, url: str, tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from prompttuner.db import Store\n"
        "store = Store.open(sys.argv[1]); store.acquire(ttl_s=3600.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", program, url], check=False, timeout=120)
    assert child.returncode == -9
    assert store.owner().owner is not None
    assert store.acquire().generation > 0


def test_a_living_process_of_this_machine_keeps_it(store: Store, url: str, tmp_path: Path) -> None:
    store.acquire(ttl_s=3600.0)
    with Store.open(url, notes_dir=tmp_path) as other, pytest.raises(NotOwner, match=f"pid {os.getpid()}"):
        other.acquire()


def test_a_reused_pid_is_not_mistaken_for_the_owner(store: Store) -> None:
    dead = replace(OwnerInfo.of_this_process(), pid_start="1")
    first = store.acquire(dead, ttl_s=3600.0)
    assert store.acquire().generation > first.generation


def test_pids_of_another_namespace_say_nothing(store: Store, url: str, tmp_path: Path) -> None:
    container = replace(OwnerInfo.of_this_process(), pid=2**22 + 1, machine="same host, other pid namespace")
    store.acquire(container, ttl_s=3600.0)
    with Store.open(url, notes_dir=tmp_path) as other, pytest.raises(NotOwner):
        other.acquire()


def test_a_zombie_process_counts_as_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not process_is_dead(child.pid, "")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_is_dead(child.pid, "")
    finally:
        child.communicate()
    assert process_is_dead(child.pid, "")


def test_of_many_processes_that_create_and_acquire_at_once_one_wins(url: str) -> None:
    program = (
        "import sys; from prompttuner.db import Store; from prompttuner.errors import NotOwner\n"
        "sys.stdin.readline(); store = Store.open(sys.argv[1], create=True)\n"
        "try: print(store.acquire().generation, flush=True)\n"
        "except NotOwner: print('refused', flush=True)\n"
        "sys.stdin.readline()"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        answers = [child.stdout.readline().strip() for child in children if child.stdout is not None]
    finally:
        for child in children:
            child.communicate("end\n", timeout=60)
    assert sorted(answers)[1:] == ["refused"] * 2
    assert sorted(answers)[0].isdigit()


def test_keeping_renews_only_when_a_third_of_the_ttl_has_passed(store: Store) -> None:
    mine = store.acquire(ELSEWHERE, ttl_s=3600.0)
    beat = store.owner().beat
    store.keep(mine)
    assert store.owner().beat == beat
    store.release(mine)
    brief = store.acquire(ELSEWHERE, ttl_s=0.0)
    beat = store.owner().beat
    store.keep(brief)
    assert store.owner().beat == beat + 1
    store.release(brief)
    with pytest.raises(NotOwner):
        store.keep(brief)
