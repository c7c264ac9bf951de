"""Who runs ticks: one pass, or a loop until all is done, or a daemon; always as the one owner of the state."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from prompttuner.config import Settings
from prompttuner.controller.inbox import pending_requests
from prompttuner.controller.opening import open_controller
from prompttuner.controller.requests import leave
from prompttuner.controller.resources import Resources, State
from prompttuner.controller.tick import Controller
from prompttuner.controller.tick_report import TickReport
from prompttuner.errors import (
    BackendError,
    DatabaseError,
    InterruptedByUser,
    NotOwner,
    SpoolError,
    StartsFail,
    Terminated,
)
from prompttuner.files import read_json, write_json
from prompttuner.protocol.requests import ReleaseAgent
from prompttuner.slurm.spool import Spool
from prompttuner.words import Counted

if TYPE_CHECKING:
    from prompttuner.db import Ownership, Store

__all__ = ["controlling", "run", "run_until_done", "tick_once"]

INBOX_LOOK_S = 0.1
"""How often a sleeping daemon looks for new requests, so that a submit is acted on at once."""
ACQUIRE_WAIT_S = 2.0
GIVE_BACK_S = 15.0
IN_VAIN = 3
"""Failed starts in a row after which ``until_done`` waits no more for a pool."""
AGAIN_EXPIRIES = 2.0
"""How long a controller that lost the state waits to own it again, in ``owner_expiry_s``."""

OnTick = Callable[[State, TickReport], None]
"""Called after each tick."""


def tick_once(settings: Settings, wait_s: float = 0.0) -> TickReport:
    """Own the state, do one tick, let go.

    Raises:
        NotOwner: another controller is at work (it will apply what is in the inbox); the message names it.
    """
    with controlling(settings, wait_s) as controller:
        controller.planner.next_plan_s = settings.cron_tick_s  # whoever ticks next is cron, if anybody
        return controller.tick()


def run_until_done(settings: Settings, on_tick: OnTick | None = None, wait_s: float = ACQUIRE_WAIT_S) -> None:
    """Tick until no job is queued or running (held ones do not count), then give idle agents back.

    Raises:
        StartsFail: nothing can go on (``until_done`` alone): all that is left waits for allocations that cannot start.
        Terminated: SIGTERM came before all was done.
    """
    run(settings, on_tick, wait_s, until_done=True)


def run(
    settings: Settings,
    on_tick: OnTick | None = None,
    wait_s: float = ACQUIRE_WAIT_S,
    *,
    until_done: bool = False,
) -> None:
    """The foreground controller. SIGTERM ends it after the tick at hand; Ctrl-C raises InterruptedByUser.

    A database that is away, a full disk, a spool that cannot be read: waited for, as jobs go on meanwhile. A tick
    that was cut short leaves nothing that the next one does not mend. Nor does it end because some command took over
    for a tick while this one hung (in a call to Slurm, say, or in its sleep): it goes on once that has let go.

    Raises:
        NotOwner: another controller is at work, and stays; the message names it.
        Terminated: SIGTERM came before all was done (``until_done`` alone; a daemon's end by it is no failure).
    """
    with controlling(settings, wait_s) as controller:
        metrics = controller.metrics
        if metrics is not None and settings.metrics_port is not None:
            metrics.serve(settings.metrics_port)
        ended = _serve(controller, on_tick, until_done)
    while not ended:
        with controlling(settings, AGAIN_EXPIRIES * settings.owner_expiry_s, create=False) as controller:
            controller.metrics = metrics
            ended = _serve(controller, on_tick, until_done)


def _serve(controller: Controller, on_tick: OnTick | None, until_done: bool) -> bool:
    """Tick until the end; False if the state was lost to another controller before."""
    stop: list[str] = []
    res = controller.resources

    def handler(number: int, _frame: FrameType | None) -> None:
        stop.append(signal.Signals(number).name)

    with _handling(handler):
        while not stop:
            began, tried = time.monotonic(), frozenset[Path]()
            try:
                report = controller.tick()
                if on_tick is not None:
                    on_tick(res.state, report)
                if until_done and (why := _in_vain(res)):
                    _give_back(controller, stop)
                    raise StartsFail(why)
                if until_done and not _unfinished(res):
                    _give_back(controller, stop)
                    return True
            except BrokenPipeError:  # whoever read our output has gone
                raise
            except NotOwner as error:
                res.warn(f"another controller took over meanwhile, waiting until it lets go ({error})")
                return False
            except (DatabaseError, SpoolError, BackendError, OSError) as error:
                res.warn(f"{_told(error)}: the next tick tries again")
                tried = _waiting(controller)
            _sleep(controller, stop, began + res.settings.tick_s, tried)
    if stop == ["SIGINT"]:
        raise InterruptedByUser("interrupted; running jobs go on, `prompttuner run` takes them up again")
    if until_done:
        raise Terminated(f"ended by SIGTERM, {_left(res)}; running jobs go on, `prompttuner run` takes them up again")
    return True


@contextlib.contextmanager
def controlling(settings: Settings, wait_s: float = 0.0, *, create: bool = True) -> Iterator[Controller]:
    """Own the state for a while: database, spool, backend, policy, and the ownership that fences all writes.

    ``create``: make home, spool and database where they are missing.
    """
    from prompttuner.db import Store

    if create:
        settings.make_home()
        Spool(settings.spool_dir).ensure()
    store = Store.open(settings.database_url, create=create, notes_dir=settings.home)
    try:
        ownership = store.acquire(ttl_s=settings.owner_expiry_s, wait_s=wait_s)
        try:
            controller = open_controller(settings, store, ownership)
            _bind(controller.resources)
            _announce(controller.resources)
            yield controller
        finally:
            _let_go(store, ownership)
    finally:
        store.close()


def _bind(res: Resources) -> None:
    """See that this spool is the one that the database goes with.

    Two homes at one database, on two clusters say, would each take the other's jobs and agents for lost.

    Raises:
        SpoolError: jobs or agents of the database live in another spool.
    """
    import socket

    from prompttuner.db.queries import binding

    identity = res.spool.identity()
    bound = res.state.query(binding.bound_to)
    if bound is not None and bound[0] == identity:
        return
    if bound is not None and res.state.query(binding.is_in_use):
        raise SpoolError(
            f"the database {res.state.store.place} goes with the spool {bound[1]}, and this one is {res.spool.root}: "
            "two homes, or clusters, cannot share a database; set another `database` here. If that spool is gone "
            "for good, `prompttuner db adopt` gives the database to this one"
        )
    place = f"{res.spool.root} (seen on {socket.gethostname()})"
    res.state.write(lambda session: binding.bind(session, identity, place))


def _announce(res: Resources) -> None:
    """Leave in the spool who serves it now, and from which database; warn if it was another one before.

    Two databases on one spool (one of them copied and forgotten, say, in cron's settings) would undo each other's work.
    """
    import os
    import socket

    here, before = str(res.state.store.place), read_json(res.spool.owner)
    other = before.get("database", here) if isinstance(before, dict) else here
    if other != here:
        res.warn(
            f"the spool {res.spool.root} was served from the database {other} before, and now from {here}: see that no "
            "other controller (cron, systemd, another host) still uses the former"
        )
    owner = {"owner": res.state.generation, "host": socket.gethostname(), "pid": os.getpid(), "database": here}
    write_json(res.spool.owner, owner)


def _let_go(store: Store, ownership: Ownership) -> None:
    with contextlib.suppress(NotOwner, DatabaseError):
        store.release(ownership)


def _unfinished(res: Resources) -> bool:
    from prompttuner.db.queries import jobs

    states = res.state.query(jobs.count_by_state)
    return bool(states.get("queued", 0) + states.get("running", 0)) or bool(pending_requests(res.spool))


def _in_vain(res: Resources) -> str:
    """Why nothing can go on: all that has not ended waits for pools whose starts fail again and again; else empty."""
    from prompttuner.db.queries import jobs, live, trials

    states = res.state.query(jobs.count_by_state)
    if states.get("running", 0) or not states.get("queued", 0) or pending_requests(res.spool):
        return ""
    known = res.state.query(trials.load)
    failing = {key: one for key, one in known.items() if one.failures >= IN_VAIN}
    rows = res.state.query(live.live_rows)
    waiting = [job for job in rows.jobs if job.state == "queued"]
    stuck = {job.pool: one for job in waiting if (one := failing.get(job.pool) or failing.get(""))}
    if rows.allocations or not failing or any(job.pool not in stuck for job in waiting):
        return ""
    one = next(iter(stuck.values()))
    return (
        f"nothing can go on: {Counted(len(waiting), 'job')} queued, and {Counted(one.failures, 'start')} in a row "
        f"failed ({one.reason}); mend that, and `prompttuner run` goes on"
    )


def _left(res: Resources) -> str:
    """In words, how many jobs have not ended; a database that is away must not hide the signal."""
    from prompttuner.db.queries import jobs

    try:
        states = res.state.query(jobs.count_by_state)
    except DatabaseError:
        return "before all jobs had ended"
    return f"with {Counted(states.get('queued', 0) + states.get('running', 0), 'job')} queued or running"


def _give_back(controller: Controller, stop: list[str]) -> None:
    """Nobody is left to use the warm agents: end them, and wait a little to see them go."""
    leave(controller.resources.settings, ReleaseAgent(idle=True))
    controller.planner.prewarm = False
    end = time.monotonic() + GIVE_BACK_S
    while not stop and controller.tick().allocations and time.monotonic() < end:
        time.sleep(INBOX_LOOK_S)


def _told(error: Exception) -> str:
    """An error in words that stay the same when it comes again: small files are written under a new name each time."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(str(error.filename)).parent}: {error.strerror}"
    return str(error)


def _waiting(controller: Controller) -> frozenset[Path]:
    """Requests that lie in the inbox now; none where that cannot be known."""
    with contextlib.suppress(OSError):
        return frozenset(pending_requests(controller.resources.spool))
    return frozenset()


def _sleep(controller: Controller, stop: list[str], until: float, tried: frozenset[Path] = frozenset()) -> None:
    """Sleep until the next tick is due, a request comes in, or a signal asks for the end.

    Args:
        tried: requests that a tick has just failed with: no reason to tick again at once.
    """
    known = controller.inbox.unread | tried
    while not stop and (left := until - time.monotonic()) > 0:
        time.sleep(min(INBOX_LOOK_S, left))
        with contextlib.suppress(OSError):  # a spool that cannot be read now: the tick says so
            if not known.issuperset(pending_requests(controller.resources.spool)):
                return


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals end the loop between ticks; outside the main thread nothing can be (and is) changed."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        old = [signal.signal(number, handler) for number in numbers]
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, previous in zip(numbers, old, strict=True):
            signal.signal(number, previous)
