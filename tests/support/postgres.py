"""A throw-away Postgres server on a Unix socket: own folder, any user, nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["PostgresServer", "find_programs", "own_postgres", "postgres_server", "postgres_url", "running_postgres"]

SUPERUSER = "prompttuner"
SECRET_USER = "secretive"
"""A user who must give a password."""
PR_SET_PDEATHSIG = 1


def find_programs() -> Path | None:
    """The folder of initdb and postgres, newest version first; None where Postgres is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return Path(program).resolve().parent if program else None


class PostgresServer:
    """A server in ``folder``, which belongs to the user it runs as (Postgres refuses root)."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self.programs = programs
        self.folder = folder
        self.user = user
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        self._run("initdb", "-D", str(self.folder / "data"), "-U", SUPERUSER, "-A", "trust", "--no-sync", "-E", "UTF8")
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {SECRET_USER} scram-sha-256\nlocal all all trust\n")

    def start(self, timeout: float = 60.0) -> None:
        """Start and wait until it answers."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "60",
            "shared_buffers": "32MB",
        }
        arguments = [item for key, value in options.items() for item in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.folder / "data"), *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                **self._identity(),
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ready = subprocess.run(
                [str(self.programs / "pg_isready"), "-q", "-h", str(self.folder)], check=False, cwd="/"
            )
            if ready.returncode == 0:
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"Postgres did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT, timeout: float = 60.0) -> None:
        """End it: SIGINT disconnects everybody (fast shutdown), SIGQUIT is a crash."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, how)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@/{database}?host={self.folder}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement as superuser; returns psql's plain output."""
        command = [str(self.programs / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder)]
        done = subprocess.run(
            [*command, "-U", SUPERUSER, "-d", database, "-c", statement],
            check=True,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=60,
        )
        return done.stdout.strip()

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database, dropped afterwards."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=120,
            **self._identity(),
        )

    def _identity(self) -> dict[str, object]:
        if self.user is None:
            return {}
        entry = pwd.getpwnam(self.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A started server; stopped and removed at the end.

    Raises:
        RuntimeError: Postgres is not installed, or does not start.
    """
    programs = find_programs()
    if programs is None:
        raise RuntimeError("Postgres is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pt-pg-", dir="/tmp"))  # a socket's path may have 107 characters only
    user = _unprivileged() if os.geteuid() == 0 else None
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    server = PostgresServer(programs, folder, user)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    """A killed test run leaves no server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("root needs a user postgres or nobody to run Postgres as")


def _need() -> None:
    """Skip where Postgres is not installed, except where its tests are demanded (CI)."""
    if find_programs() is None:
        message = "no Postgres on this host: initdb not found in /usr/lib/postgresql/*/bin or on the PATH"
        if os.environ.get("PROMPTTUNER_REQUIRE_POSTGRES"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's server; tests that stop it use ``own_postgres``."""
    _need()
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the session's server."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, which it may stop and crash."""
    _need()
    with running_postgres() as server:
        yield server
