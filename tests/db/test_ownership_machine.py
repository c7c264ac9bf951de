"""Two hosts fight for the ownership: crashes, pauses, clocks that disagree. Nobody alive loses it, no zombie writes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from postgres import PostgresServer

from prompttuner.db import OwnerInfo, Ownership, Store
from prompttuner.db.queries import events
from prompttuner.errors import NotOwner

TTL = 30.0
HOSTS = ("north", "south", "east")


class Owners(RuleBasedStateMachine):
    """Real stores on one real database; time is the machine's own."""

    url: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pt-own-"))
        self.place = self.url or str(self.folder / "state.db")
        self.time = 0.0
        self.held: dict[str, Ownership] = {}
        self.alive: set[str] = set()
        self.awake = set(HOSTS)
        self.written = 0
        self.processes = 0
        self.seen: dict[str, tuple[int, int, float]] = {}
        self.stores: dict[str, Store] = {}

    @initialize(offsets=st.tuples(*[st.floats(0.0, 1e6)] * len(HOSTS)))
    def open(self, offsets: tuple[float, ...]) -> None:
        for host, offset in zip(HOSTS, offsets, strict=True):
            notes = self.folder / host
            notes.mkdir()
            self.stores[host] = Store.open(
                self.place, create=True, notes_dir=notes, clock=lambda offset=offset: self.time + offset
            )
        first = self.stores["north"]
        with first.read() as session:
            self.written = events.last_seq(session)

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.folder)

    @rule(host=st.sampled_from(HOSTS))
    def acquire(self, host: str) -> None:
        """Succeeds if nobody owns it, or its beat stood still for the ttl since this host first saw it."""
        row = self.stores[host].owner()
        allowed = row.owner is None
        if not allowed:
            known = self.seen.get(host)
            if known is None or known[:2] != (row.generation, row.beat):
                self.seen[host] = known = (row.generation, row.beat, self.time)
            allowed = self.time - known[2] >= TTL - 1e-6
            certain = abs(self.time - known[2] - TTL) > 1e-3  # not on the very edge, where rounding decides
        else:
            certain = True
        self.processes += 1  # each looks like one of a machine of its own, so that pids prove nothing
        info = OwnerInfo(host=host, pid=1, command="test", machine=f"boot {self.processes}", pid_start="1")
        try:
            got = self.stores[host].acquire(info, ttl_s=TTL)
        except NotOwner as error:
            assert not (allowed and certain)
            assert f"on {row.host}" in str(error)
            return
        assert allowed or not certain
        assert got.generation > row.generation
        losers = [name for name in self.alive & self.awake if self.held[name].generation == row.generation]
        assert row.owner is None or not losers, f"{losers} lived and renewed, and lost it to {host}"
        self.held[host] = got
        self.alive.add(host)
        self.awake.add(host)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Works exactly for the holder of the present generation, dead or alive, awake or not."""
        host = data.draw(st.sampled_from(sorted(self.held)))
        mine = self.held[host]
        row = self.stores[host].owner()
        note = [events.NewEvent("test.write", host, data={"generation": mine.generation})]
        if (row.generation, row.owner) == (mine.generation, mine.owner):
            self.stores[host].transact(mine, lambda session: events.append(session, note, self.time))
            self.written += 1
        else:
            with pytest.raises(NotOwner):
                self.stores[host].transact(mine, lambda session: events.append(session, note, self.time))
            with pytest.raises(NotOwner):
                self.stores[host].renew(mine)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.held)))
        self.stores[host].release(self.held[host])
        self.alive.discard(host)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def crash_or_pause(self, data: st.DataObject) -> None:
        self.awake.discard(data.draw(st.sampled_from(sorted(self.alive))))

    @rule(seconds=st.floats(0.5, 3 * TTL))
    def pass_time(self, seconds: float) -> None:
        """Time passes in steps of a third of the ttl; who lives and is awake renews, as a controller does."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + TTL / 3)
            for host in self.alive & self.awake:
                try:
                    self.stores[host].renew(self.held[host])
                except NotOwner:
                    self.alive.discard(host)

    @rule()
    def restart_all(self) -> None:
        """Cron: every process is a new one; observations come from the notes."""
        for host, store in self.stores.items():
            clock = store._watch.clock
            store.close()
            self.stores[host] = Store.open(self.place, notes_dir=self.folder / host, clock=clock)

    @invariant()
    def every_write_is_there_once_in_the_order_of_generations(self) -> None:
        if not self.stores:
            return
        with self.stores["north"].read() as session:
            rows = events.read_after(session)
        generations = [row.data["generation"] for row in rows]
        assert len(rows) == self.written
        assert generations == sorted(generations)


def _bounds(examples: int) -> settings:
    return settings(max_examples=examples, stateful_step_count=30, deadline=None, derandomize=True)


def test_ownership_on_sqlite() -> None:
    run_state_machine_as_test(Owners, settings=_bounds(15))


@pytest.mark.postgres
def test_ownership_on_postgres(postgres_server: PostgresServer) -> None:
    class OnPostgres(Owners):
        def __init__(self) -> None:
            self._database = postgres_server.database()
            self.url = self._database.__enter__()
            super().__init__()

        def teardown(self) -> None:
            super().teardown()
            self._database.__exit__(None, None, None)

    run_state_machine_as_test(OnPostgres, settings=_bounds(6))
