"""What the shell may complete after ``prompttuner COMMAND``: jobs, states, allocations, bank entries, settings, models.

Each function gets what was typed so far and answers with (word, help) pairs. The shell waits for it at each press of
the tabulator key, so it reads little, and whatever goes wrong is no completion: never a message, never a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import typer

__all__ = ["allocation_words", "entry_words", "job_states", "job_words", "model_words", "policy_words", "setting_words"]

MOST = 200
"""Jobs and entries that are offered, the newest first."""
Pairs: TypeAlias = list[tuple[str, str]]
Completer: TypeAlias = Callable[[typer.Context, str], Pairs]


def _completer(find: Callable[[], Iterable[tuple[str, str]]]) -> Completer:
    """Offer those of the pairs whose word begins with what was typed."""

    def complete(ctx: typer.Context, incomplete: str) -> Pairs:
        try:
            _follow_flags(ctx)
            return [pair for pair in find() if pair[0].startswith(incomplete)]
        except Exception:
            return []

    complete.__name__, complete.__doc__ = find.__name__, find.__doc__
    return complete


def _follow_flags(ctx: typer.Context) -> None:
    """The shell asks without running the root command, so its options have not been heard yet."""
    from prompttuner.cli.frame import context

    given = ctx.find_root().params
    home = given.get("home")
    context.set_flags({"home": None if home is None else str(home), "backend": given.get("backend")}, [])


@_completer
def job_words() -> Iterable[tuple[str, str]]:
    """Names of jobs that only one of them has, and ids of the others."""
    from collections import Counter

    from prompttuner.cli.state.reading import looking
    from prompttuner.db.queries import jobs
    from prompttuner.states import JobState

    with looking() as session:
        rows = [] if session is None else jobs.newest(session, MOST, list(JobState))
        known = [(row.id, row.name or "", row.state) for row in rows]
    names = Counter(name for _, name, _ in known)
    for job, name, state in known:
        yield (name, f"{state} ({job})") if name and names[name] == 1 else (job, f"{state} {name}".rstrip())


@_completer
def job_states() -> Iterable[tuple[str, str]]:
    """The states that a job can be in."""
    from prompttuner.states import JobState

    return [(str(state), "") for state in JobState]


@_completer
def allocation_words() -> Iterable[tuple[str, str]]:
    """Ids of the allocations that have not ended."""
    from prompttuner.cli.state.reading import looking
    from prompttuner.db.queries import allocations

    with looking() as session:
        rows = [] if session is None else allocations.load_live(session)
        return [(row.uuid, f"{row.state} {row.native_id or ''}".rstrip()) for row in rows]


@_completer
def entry_words() -> Iterable[tuple[str, str]]:
    """Ids of the entries of the own bank and of the shared ones."""
    from prompttuner.bank import Bank
    from prompttuner.cli.frame import context

    found: Pairs = []
    for folder in context.settings().all_bank_dirs:
        if folder.is_dir():
            found += [(entry, shelf.model) for shelf in Bank.open(folder).shelves() for entry in shelf.ids()]
    return found[:MOST]


@_completer
def setting_words() -> Iterable[tuple[str, str]]:
    """Names of all settings."""
    from prompttuner.config.layers import known_settings

    return [(name, "") for name in known_settings()]


@_completer
def model_words() -> Iterable[tuple[str, str]]:
    """The shipped model, and models that were fetched."""
    from prompttuner.cli.frame import context

    folder = context.settings().home / "models"
    fetched = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [("small", "the shipped small model"), *((str(path), "fetched") for path in fetched)]


@_completer
def policy_words() -> Iterable[tuple[str, str]]:
    """Names of the policies."""
    from prompttuner.policy import POLICIES

    return [(name, "") for name in POLICIES]
