"""Write what a database of the present revision looks like, with data in it, as SQL text: run once a released revision.

    python tests/db/revisions/make.py

makes ``<revision>.sqlite.sql`` and ``<revision>.postgres.sql``, which later versions must be able to upgrade.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from filled_store import fill  # noqa: E402
from postgres import SUPERUSER, running_postgres  # noqa: E402

from prompttuner.db import Store  # noqa: E402
from prompttuner.db.store.schema import HEAD  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        _fill(str(path))
        with sqlite3.connect(path) as raw:
            (HERE / f"{HEAD}.sqlite.sql").write_text("\n".join(raw.iterdump()) + "\n")
    with running_postgres() as server, server.database() as url:
        _fill(url)
        command = [str(server.programs / "pg_dump"), "--no-owner", "--no-privileges", "--inserts"]
        name = url.split("/")[3].split("?")[0]
        dump = subprocess.run(
            [*command, "-h", str(server.folder), "-U", SUPERUSER, name],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
    lines = [line for line in dump.splitlines() if line and not line.startswith(("--", "\\", "SET "))]
    (HERE / f"{HEAD}.postgres.sql").write_text("\n".join(lines) + "\n")


def _fill(url: str) -> None:
    with tempfile.TemporaryDirectory() as notes, Store.open(url, create=True, notes_dir=Path(notes)) as store:
        fill(store)


if __name__ == "__main__":
    main()
