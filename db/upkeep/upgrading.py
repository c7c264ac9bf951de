"""``prompttuner db upgrade``: own the state, save it, then change its schema."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from prompttuner.db.store import schema
from prompttuner.db.store.place import Place, look_at
from prompttuner.db.store.store import Store
from prompttuner.db.upkeep.transfer import backup
from prompttuner.errors import DatabaseError

__all__ = ["Upgraded", "upgrade"]

WAIT_S = 5.0
"""How long to wait for a present owner (a tick of cron, say) to let go."""
DUMP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What was done."""

    before: str | None
    after: str
    saved: Path | None
    """The copy of the state as it was; None where there was nothing to save, or none was wanted."""


def upgrade(url: str, folder: Path, *, save: bool = True) -> Upgraded:
    """Create the database, or bring one of an older revision up to date; nothing happens to one that is.

    Args:
        folder: of this user, for the copy of the state and for what is remembered of other owners.
        save: copy the state there before anything is changed.

    Raises:
        NotOwner: a controller is at work: stop it first; nothing was changed.
        DatabaseError: it is of a newer version, cannot be saved, or cannot be used; nothing was changed.
    """
    with Store.unchecked(url) as store:
        if store.place.path is not None and look_at(store.place.path) is None:
            return Upgraded(*Store.upgrade_at(url), None)
        before = store.revision()
        if before not in schema.REVISIONS[:-1]:  # empty, up to date, or of a newer version, which is refused unowned
            return Upgraded(*store.upgrade(), None)
    with Store.unchecked(url, folder) as store:
        mine = store.acquire(ttl_s=DUMP_S, wait_s=WAIT_S)
        try:
            saved = _save(url, store.place, folder, before) if save else None
            store.confirm(mine)
            return Upgraded(*store.upgrade(), saved)  # whoever owned it, we too, does not any more
        except BaseException:
            store.release(mine)
            raise


def _save(url: str, place: Place, folder: Path, revision: str) -> Path:
    name = _free(folder, f"before-upgrade-from-{revision}", ".db" if place.is_sqlite else ".sql")
    if place.is_sqlite:
        backup(url, name)
    else:
        _dump(place, name)
    return name


def _free(folder: Path, stem: str, suffix: str) -> Path:
    for number in range(1, 1000):
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        if not path.exists():
            return path
    raise DatabaseError(f"{folder} holds a thousand copies from before upgrades: remove some")


def _dump(place: Place, path: Path) -> None:
    """A dump by Postgres's own program, which no password is written on the command line of."""
    program = shutil.which("pg_dump")
    if program is None:
        raise DatabaseError(
            f"database {place} cannot be saved before its upgrade, as there is no pg_dump here: install Postgres's "
            "client programs, or save it yourself and give --no-backup"
        )
    url = place.url.set(drivername="postgresql")
    environment = dict(os.environ)
    if url.password:
        environment["PGPASSWORD"] = str(url.password)
    address = url.set(password=None).render_as_string(hide_password=False)
    opener = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(opener, "wb") as file:
            command = [program, "--no-owner", "--no-privileges", "--dbname", address]
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.PIPE, env=environment, timeout=DUMP_S, check=False
            )
        if done.returncode:
            raise DatabaseError(f"database {place} cannot be saved: {done.stderr.decode(errors='replace').strip()}")
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError | subprocess.SubprocessError):
            raise DatabaseError(f"database {place} cannot be saved: {error}") from error
        raise
