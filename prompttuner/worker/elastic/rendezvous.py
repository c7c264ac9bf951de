"""A torch.distributed.elastic rendezvous that follows a job's membership plan, and the store of one generation."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from prompttuner.errors import ConfigError
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.files import read_message, understood, write_message
from prompttuner.protocol.jobs import Membership, Parked, StorePlace
from prompttuner.worker.elastic.gathering import (
    GenerationBroken,
    JobDone,
    Superseded,
    after_loss,
    await_predecessors,
    gather,
    not_ready,
    pauses,
)
from prompttuner.worker.elastic.group import PeerLost
from prompttuner.worker.elastic.network import listen_on
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.membership import member_dir, read_membership

__all__ = ["ALONE", "BACKEND", "Joined", "PlanRendezvous", "create_rendezvous"]

BACKEND = "prompttuner"
MAX_FRUITLESS = 3
"""After so many generations in a row that broke without a step, the survivors plan one member only."""

GENERATION_ENV = "PROMPTTUNER_GENERATION"
PREFIX_ENV = "PROMPTTUNER_STORE_PREFIX"
JOB_ENV = "PROMPTTUNER_JOB_DIR"
AGENT_ENV = "PROMPTTUNER_AGENT"
"""What a worker under torchelastic is told beside torchelastic's own variables."""

ALONE = "127.0.0.1"
"""Where a member without others listens: nothing outside this process has to reach it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A generation whose members have all come and can reach its store."""

    plan: Membership
    rank: int
    store: Store
    """Keys are under a random prefix which only readers of the job's folder know."""
    host: str = ""
    port: int = 0
    token: str = ""


class PlanRendezvous(RendezvousHandler):
    """Takes generation, members and ranks from the job's plan.

    Rank 0 serves the generation's store on one address, on a port that it publishes in its own folder. No store
    outlives its generation, so nobody's end can take a later generation's store away.
    """

    def __init__(
        self, job_dir: Path, agent: str, address: str, settings: ElasticSettings, limit: int | None = None
    ) -> None:
        """``limit``: largest useful number of members (the batch size); members of a higher rank are given back."""
        self.job_dir = job_dir
        self.agent = agent
        self.address = address
        self.settings = settings
        self.limit = limit
        self.tick: Callable[[], None] = lambda: None
        """Called at each poll of a wait; may raise, to leave on a signal."""
        self.before_ready: Callable[[Membership, MemberFiles], None] = lambda _plan, _files: None
        """Called before this member says that it has come (the first member's Prompt Bank lookup)."""
        self.files: MemberFiles | None = None
        self.joined: Joined | None = None
        self.position: Callable[[], int] = lambda: -1
        """How far this member's task is, to see whether a generation that broke had got any further."""
        self.reason = ""
        """Why this member was given back, when it was."""
        self._server: TCPStore | None = None
        self._closed = False
        self._broke_at = -1
        self._fruitless = 0

    # -- what leases use ---------------------------------------------------------------------------------------

    def join(self, plan: Membership) -> Joined | None:
        """Come to ``plan`` or to a newer one, whichever holds; None when that is without this agent.

        Returns after all members have come. A generation that breaks before is replaced as after a loss.
        """
        while True:
            rank = plan.rank_of(self.agent)
            if rank is None or plan.stop is not None:
                return None
            if self.limit is not None and rank >= self.limit:
                self.reason = f"{len(plan.members)} members for a batch of {self.limit}: this one would have no sample"
                return None
            files = self._files_of(plan)
            try:
                return self._come(plan, rank, files)
            except Superseded as newer:
                files.progress("moved")
                plan = newer.plan
            except JobDone:
                self.reason = "the job is done"
                return None
            except (GenerationBroken, PeerLost) as error:
                plan = self.replan(plan, str(error))

    def replan(self, plan: Membership, why: str) -> Membership:
        """The plan after ``plan`` has broken; see :func:`prompttuner.worker.elastic.gathering.after_loss`."""
        files = self._files_of(plan)
        files.progress("broken", why=why)
        self._server = None
        at = self.position()
        self._fruitless = self._fruitless + 1 if at == self._broke_at else 1
        self._broke_at = at
        # Members that can not talk to each other would break for ever; one alone needs no network.
        most = 1 if self._fruitless >= MAX_FRUITLESS else None
        return after_loss(self.job_dir, self._effective(plan), self.agent, self.settings, self.tick, most)

    def enter(self, plan: Membership) -> MemberFiles:
        """This member's files in a generation, without joining it."""
        return self._files_of(plan)

    def newcomers_missing(self, plan: Membership, running: tuple[str, ...]) -> list[str]:
        """Members of a newer plan who are not ready yet; the running ones go on as long as there are any."""
        return not_ready(self.job_dir, self._effective(plan), running)

    def _effective(self, plan: Membership) -> Membership:
        if self.limit is None or len(plan.members) <= self.limit:
            return plan
        return replace(plan, members=plan.members[: self.limit])

    def _files_of(self, plan: Membership) -> MemberFiles:
        if self.files is None or self.files.generation != plan.generation:
            if self.files is not None:
                self.files.close()
            self.files = MemberFiles(self.job_dir, plan.generation, self.agent)
        return self.files

    def _come(self, plan: Membership, rank: int, files: MemberFiles) -> Joined:
        plan = self._effective(plan)
        self._server = None
        published = member_dir(self.job_dir, plan.generation, plan.members[0]) / StorePlace.FILE
        if rank == 0:
            self.before_ready(plan, files)
            address = self.address if len(plan.members) > 1 else ALONE
            with listen_on(address) as listener:
                port = listener.getsockname()[1]
                self._server = self._open(address, port, listener.detach())
            write_message(published, StorePlace(address, port, secrets.token_hex(8)), durable=False)
        files.progress("ready", members=len(plan.members))
        if rank == 0:
            await_predecessors(self.job_dir, plan, self.settings, self.tick)
        gather(self.job_dir, plan, self.agent, self.settings, self.tick)
        for _ in pauses():  # everybody is ready, rank 0 included, so this is only the file system being late
            where = understood(read_message(StorePlace, published))
            if where is not None:
                break
            self.tick()
        assert where is not None
        server = self._server or self._open(where.host, where.port, None)
        store = PrefixStore(where.token, server)
        self.joined = Joined(plan, rank, store, where.host, where.port, where.token)
        return self.joined

    def _open(self, host: str, port: int, listening: int | None) -> TCPStore:
        timeout = timedelta(seconds=self.settings.loss_timeout_s)
        try:
            return TCPStore(
                host, port, None, listening is not None, timeout, wait_for_workers=False, master_listen_fd=listening
            )
        except RuntimeError as error:
            raise PeerLost(f"the store of rank 0 at {host}:{port} does not answer: {error}") from error

    # -- what torchelastic uses --------------------------------------------------------------------------------

    def get_backend(self) -> str:
        """Name of this rendezvous."""
        return BACKEND

    def get_run_id(self) -> str:
        """Id of the run: the job."""
        return self.job_dir.name

    @property
    def use_agent_store(self) -> bool:
        """Workers get the generation's store, which the agent's process serves."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the newest generation above the one that this agent was in.

        Raises:
            RendezvousGracefulExitError: the plan is without this agent, or the job shall stop.
        """
        plan = self._next_plan()
        joined = self.join(plan)
        if joined is None:
            raise RendezvousGracefulExitError(self.reason or f"agent {self.agent} is no longer a member")
        if self.files is not None:
            self.files.close()  # from here on the worker writes them
            self.files = None
        os.environ.update(
            {
                GENERATION_ENV: str(joined.plan.generation),
                PREFIX_ENV: joined.token,
                JOB_ENV: str(self.job_dir),
                AGENT_ENV: self.agent,
            }
        )
        where = RendezvousStoreInfo(joined.host, joined.port)
        return RendezvousInfo(joined.store, joined.rank, len(joined.plan.members), where)

    def _next_plan(self) -> Membership:
        if self.joined is not None:
            plan = self.joined.plan
            parked = self._parked()
            if parked is None or parked.lost is not None:
                # The worker failed, or lost the others: this agent lives, and says so to the other survivors.
                return self.replan(plan, "the worker died" if parked is None else str(parked.lost))
        for _ in pauses():
            self.tick()
            newest = read_membership(self.job_dir)
            if newest is not None and (self.joined is None or newest.generation > self.joined.plan.generation):
                return newest
        raise AssertionError("unreachable")

    def park(self, lost: str | None) -> None:
        """In the worker: say that it has stopped and waits to be replaced (``lost``: because it lost the others)."""
        assert self.joined is not None
        folder = member_dir(self.job_dir, self.joined.plan.generation, self.agent)
        write_message(folder / Parked.FILE, Parked(True, lost), durable=False)

    def _parked(self) -> Parked | None:
        if self.joined is None:
            return None
        folder = member_dir(self.job_dir, self.joined.plan.generation, self.agent)
        return understood(read_message(Parked, folder / Parked.FILE))

    def num_nodes_waiting(self) -> int:
        """Positive only once the worker has parked: torchelastic then replaces it, without counting a restart."""
        return 1 if self._parked() is not None else 0

    def is_closed(self) -> bool:
        """Whether this member takes part in no further generation."""
        return self._closed

    def set_closed(self) -> None:
        """Take part in no further generation."""
        self._closed = True

    def shutdown(self) -> bool:
        """Leave for good; True, as torchelastic expects."""
        self._server = None
        return True


def create_rendezvous(params: RendezvousParameters) -> PlanRendezvous:
    """From what torchrun was told: ``--rdzv-conf job_dir=FOLDER,agent=ID[,address=A]``.

    Raises:
        ConfigError: job or agent not given.
    """
    job_dir, agent = params.get("job_dir"), params.get("agent")
    if not job_dir or not agent:
        raise ConfigError(
            f"the rendezvous backend {BACKEND!r} needs --rdzv-conf job_dir=FOLDER,agent=ID; the plan names the agents"
        )
    address = params.get("address") or params.local_addr or "127.0.0.1"
    return PlanRendezvous(Path(job_dir), agent, address, ElasticSettings.from_env())
