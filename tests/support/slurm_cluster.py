"""A real Slurm cluster on this host, thrown away afterwards: a class, a context manager and a command.

    python tests/support/slurm_cluster.py start PREFIX [--no-accounting] [--nodes 4]
    SLURM_CONF=PREFIX/slurm.conf sinfo
    python tests/support/slurm_cluster.py stop PREFIX

Needs the Debian packages slurm-wlm slurm-wlm-basic-plugins slurmdbd munge slurm-client mariadb-server; works as root
and as an ordinary user. All files are under PREFIX, all ports are free ones, and every process carries a mark in its
environment, so that nothing is left behind: ``stop`` finds the processes of a prefix even if whoever started them was
killed, and a cluster used as a context manager is taken down by a small reaper should its owner die.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from slurm_cluster_conf import ClusterShape, cgroup_conf, dbd_conf, gres_conf, init_sql, slurm_conf

__all__ = ["Cluster", "ClusterError", "missing_programs", "running_cluster"]

MARK = "PROMPTTUNER_TEST_CLUSTER"
PROGRAMS = ("munged", "slurmctld", "slurmd", "squeue", "sbatch")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")
START_LIMIT_S = 180.0


class ClusterError(RuntimeError):
    """The cluster did not come up; the message holds the end of the log that says why."""


def missing_programs(accounting: bool = True) -> list[str]:
    """Programs of the Debian packages that are not installed."""
    wanted = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    return [name for name in wanted if _which(name) is None]


class Cluster:
    """One cluster under one prefix. ``start`` and ``stop`` may be called by different processes."""

    def __init__(self, shape: ClusterShape) -> None:
        self.shape = shape
        self.prefix = shape.prefix
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def create(
        cls,
        prefix: Path,
        *,
        nodes: int = 4,
        gpus: int = 2,
        accounting: bool = True,
        grace_s: int = 0,
        little_memory: bool = False,
    ) -> Cluster:
        """Lay out a new prefix (absolute, short: sockets live in it) with configuration and free ports."""
        prefix = prefix.absolute()
        prefix.mkdir(mode=0o755, parents=True, exist_ok=True)
        names = ["slurmctld", "slurmdbd", "mariadb", *(f"n{index}" for index in range(1, nodes + 1))]
        shape = ClusterShape(
            prefix,
            getpass.getuser(),
            _free_ports(names),
            nodes,
            gpus,
            accounting,
            grace_s,
            little_memory=little_memory,
            version=_version(),
        )
        for name in ("run", "log", "state", "slurmd", "dev", "db"):
            (prefix / name).mkdir(mode=0o755, exist_ok=True)
        for index in range(gpus):
            (prefix / "dev" / f"nvidia{index}").symlink_to("/dev/null")
        (prefix / "slurm.conf").write_text(slurm_conf(shape))
        (prefix / "gres.conf").write_text(gres_conf(shape))
        (prefix / "cgroup.conf").write_text(cgroup_conf(shape))
        password = secrets.token_hex(12)
        _private(prefix / "slurmdbd.conf", dbd_conf(shape, password))
        _private(prefix / "init.sql", init_sql(password))
        _private(prefix / "munge.key", secrets.token_hex(512))
        (prefix / "cluster.json").write_text(json.dumps({**asdict(shape), "prefix": str(prefix)}))
        return cls(shape)

    @classmethod
    def open(cls, prefix: Path) -> Cluster:
        """A cluster that some other process started."""
        raw = json.loads((prefix.absolute() / "cluster.json").read_text())
        return cls(ClusterShape(**{**raw, "prefix": Path(raw["prefix"]), "version": tuple(raw["version"])}))

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Bring everything up; returns when all nodes are idle. On failure nothing is left running."""
        try:
            self._start_munge()
            if self.shape.accounting:
                self._start_accounting()
            self._start_daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.prefix / "slurm.conf")])
            for name in self.shape.node_names:
                self.restart_node(name)
            self.wait_nodes("idle", self.shape.node_names)
        except BaseException:
            self.stop()
            raise

    def stop(self, remove: bool = False) -> None:
        """End every process of this prefix, jobs included; optionally remove its files."""
        names = [*self.shape.node_names, "slurmctld", "slurmdbd", "mariadb", "munged"]
        self._kill_jobs()
        for name in names[:-2]:
            self._signal(name, signal.SIGKILL)
        self._signal("mariadb", signal.SIGTERM if not remove else signal.SIGKILL)
        self._signal("munged", signal.SIGTERM)
        self._end_the_rest(patience_s=10.0)
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
        if remove:
            shutil.rmtree(self.prefix, ignore_errors=True)

    # ------------------------------------------------------------------ use

    @property
    def env(self) -> dict[str, str]:
        """The present environment, without traces of another Slurm, aimed at this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        path = kept.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
        return {**kept, "PATH": path, "SLURM_CONF": str(self.prefix / "slurm.conf")}

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> str:
        """Output of a client command on this cluster."""
        done = subprocess.run(
            command,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def wait_nodes(self, state: str, names: Sequence[str], timeout: float = START_LIMIT_S) -> None:
        """Until these nodes are all in a state (sinfo's long words, compared by prefix)."""
        deadline = time.monotonic() + timeout
        seen: dict[str, str] = {}
        while time.monotonic() < deadline:
            rows = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
            seen = dict(row.split() for row in rows if len(row.split()) == 2)
            if all(seen.get(name, "").startswith(state) for name in names):
                return
            time.sleep(0.1)
        raise ClusterError(f"nodes are not {state} after {timeout:.0f} s: {seen}\n{self._tail('slurmctld')}")

    def kill_node(self, name: str, jobs: bool = True) -> None:
        """SIGKILL a node's slurmd; with ``jobs`` its job processes too (power cut), else they live on (no network)."""
        self._signal(name, signal.SIGKILL)
        if jobs:
            self._kill_jobs(name)

    def restart_node(self, name: str) -> None:
        """Start a node's slurmd (again)."""
        self._start_daemon(name, ["slurmd", "-D", "-N", name, "-f", str(self.prefix / "slurm.conf")])

    def set_node(self, name: str, state: str, reason: str = "test") -> None:
        """``down``, ``drain``: acts at once."""
        self.run("scontrol", "update", f"nodename={name}", f"state={state}", f"reason={reason}")

    def return_node(self, name: str) -> None:
        """Start a node's slurmd again and wait until the node is in service.

        A node that registers returns by itself, and ``resume`` is an error then: whichever comes first.
        """
        self.restart_node(name)

        def in_service() -> bool:
            self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
            state = self.run("sinfo", "-h", "-N", "-n", name, "-o", "%T", check=False).split()[:1]
            return bool(state) and state[0] in {"idle", "mixed", "allocated", "completing"}

        self._until(in_service, name)

    def stop_slurmctld(self) -> None:
        """Take the controller away (SIGTERM, so that it saves its state)."""
        self._signal("slurmctld", signal.SIGTERM)
        self._wait_gone("slurmctld")

    def start_slurmctld(self) -> None:
        """Bring the controller back; returns when it answers."""
        self._start_daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.prefix / "slurm.conf")])
        self._until(lambda: "is UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    def restart_slurmctld(self) -> None:
        """Stop and start the controller; jobs are kept."""
        self.stop_slurmctld()
        self.start_slurmctld()

    def stop_accounting(self) -> None:
        """Take slurmdbd away; slurmctld keeps what it has to say until it is back."""
        self._signal("slurmdbd", signal.SIGTERM)
        self._wait_gone("slurmdbd")

    def start_accounting(self) -> None:
        """Bring slurmdbd back."""
        self._start_daemon("slurmdbd", ["slurmdbd", "-D"])
        self._until(lambda: _listens(self.shape.ports["slurmdbd"]), "slurmdbd")

    def processes(self) -> list[int]:
        """Ids of all living processes of this cluster, those of its jobs included."""
        return sorted({*_marked(self.prefix), *_job_pids(self.prefix)})

    # ------------------------------------------------------------------ parts

    def _start_munge(self) -> None:
        run = self.prefix / "run"
        self._start_daemon(
            "munged",
            [
                "munged", "--foreground", "--force", f"--key-file={self.prefix}/munge.key",
                f"--socket={run}/munge.socket", f"--pid-file={run}/munged.own.pid",
                f"--log-file={self.prefix}/log/munged.log", f"--seed-file={run}/munged.seed", "--num-threads=4",
            ],
        )  # fmt: skip
        self._until((run / "munge.socket").exists, "munged")

    def _start_accounting(self) -> None:
        data, run = self.prefix / "db", self.prefix / "run"
        common = [f"--datadir={data}", f"--user={self.shape.user}"]
        if not (data / "mysql").exists():
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", *common, "--auth-root-authentication-method=normal",
                 "--skip-test-db", "--skip-name-resolve"],
                env=self._daemon_env(), check=True, capture_output=True, timeout=START_LIMIT_S,
            )  # fmt: skip
        self._start_daemon(
            "mariadb",
            [
                "mariadbd", "--no-defaults", *common, f"--socket={run}/mariadb.socket", "--bind-address=127.0.0.1",
                f"--port={self.shape.ports['mariadb']}", f"--pid-file={run}/mariadb.own.pid",
                f"--init-file={self.prefix}/init.sql", "--skip-name-resolve=0", "--innodb-buffer-pool-size=64M",
                "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900",
            ],
        )  # fmt: skip
        self._until(lambda: _listens(self.shape.ports["mariadb"]), "mariadb")
        self.start_accounting()
        for words in (["cluster", "throwaway"], ["account", "research", "cluster=throwaway"],
                      ["user", self.shape.user, "account=research"]):  # fmt: skip
            self.run("sacctmgr", "-i", "add", *words, check=False)
        if "throwaway" not in self.run("sacctmgr", "-nP", "show", "cluster", "format=cluster"):
            raise ClusterError(f"slurmdbd does not know the cluster\n{self._tail('slurmdbd')}")

    def _daemon_env(self) -> dict[str, str]:
        return {**self.env, MARK: str(self.prefix)}

    def _start_daemon(self, name: str, command: list[str]) -> None:
        program = _which(command[0])
        if program is None:
            raise ClusterError(f"{command[0]} is not installed (packages: slurm-wlm slurmdbd munge mariadb-server)")
        with (self.prefix / "log" / f"{name}.out").open("ab") as log:
            child = subprocess.Popen(
                [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._daemon_env(),
                cwd=self.prefix / "run", start_new_session=True,
            )  # fmt: skip
        self._children[name] = child
        (self.prefix / "run" / f"{name}.pid").write_text(str(child.pid))

    def _pid(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.prefix / "run" / f"{name}.pid").read_text())
            return pid if pid in _marked(self.prefix) else None
        return None

    def _end_the_rest(self, patience_s: float) -> None:
        """Wait for daemons to go; a job that was just being started appears only now, so look until none is left.

        Two empty looks in a row: a process between fork and exec can be missed by one.
        """
        patient_until = time.monotonic() + patience_s
        empty = 0
        while empty < 2 and time.monotonic() < patient_until + patience_s:
            self._kill_jobs()
            if time.monotonic() > patient_until:
                for pid in _marked(self.prefix):
                    _kill(pid, signal.SIGKILL)
            empty = 0 if self.processes() else empty + 1
            time.sleep(0.05)

    def _signal(self, name: str, number: int) -> None:
        pid = self._pid(name)
        if pid is not None:
            _kill(pid, number)

    def _wait_gone(self, name: str) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while self._pid(name) is not None:
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} did not end\n{self._tail(name)}")
            time.sleep(0.02)

    def _kill_jobs(self, node: str | None = None) -> None:
        """SIGKILL the processes of jobs and their step daemons (all, or those on one node)."""
        for pid in _job_pids(self.prefix, node):
            _kill(pid, signal.SIGKILL)

    def _until(self, ready: object, name: str) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if ready():  # type: ignore[operator]
                return
            child = self._children.get(name)
            if child is not None and child.poll() is not None and name != "slurmctld":
                break
            time.sleep(0.02)
        raise ClusterError(f"{name} did not come up\n{self._tail(name)}")

    def _tail(self, name: str) -> str:
        found = []
        for path in sorted((self.prefix / "log").glob(f"{name}*")):
            found.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(found)


@contextlib.contextmanager
def running_cluster(**shape: object) -> Iterator[Cluster]:
    """A fresh cluster in a short temporary prefix, gone afterwards even if this process is killed."""
    prefix = Path(tempfile.mkdtemp(prefix="ptslurm-", dir="/tmp"))
    prefix.chmod(0o755)
    with _reaper(prefix):
        cluster = Cluster.create(prefix, **shape)  # type: ignore[arg-type]
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop(remove=True)


@contextlib.contextmanager
def _reaper(prefix: Path) -> Iterator[None]:
    """A process that takes the prefix down as soon as its standard input, held by us alone, is closed."""
    watcher = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "reap", str(prefix)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        assert watcher.stdin is not None
        with contextlib.suppress(OSError):
            watcher.stdin.close()
        watcher.wait(30)


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")


def _version() -> tuple[int, int]:
    """Release of the installed Slurm, such as (22, 5): its programs say ``slurm-wlm 22.05.8`` or ``slurm 20.11.4``."""
    said = subprocess.run([_which("slurmctld") or "slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    year, month = said.split()[-1].split(".")[:2]
    return int(year), int(month)


def _private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(text)


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    """Ports nobody listens on, below the range that the kernel hands out to clients."""
    found: dict[str, int] = {}
    for port in random.SystemRandom().sample(range(15000, 32000), 400):
        if len(found) == len(names):
            break
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found[names[len(found)]] = port
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _living() -> Iterator[tuple[int, list[bytes]]]:
    """(process id, environment at its start) of all processes we may look at, less zombies and this one."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environment = (entry / "environ").read_bytes().split(b"\0")
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                yield int(entry.name), environment


def _marked(prefix: Path) -> list[int]:
    mark = f"{MARK}={prefix}".encode()
    return [pid for pid, environment in _living() if mark in environment]


def _job_pids(prefix: Path, node: str | None = None) -> list[int]:
    """Step daemons and what they run (which has SLURM_JOB_ID)."""
    conf = f"SLURM_CONF={prefix}/slurm.conf".encode()
    # Step daemons come first: one that sees its program killed would still tell Slurm of it.
    found = [pid for pid, place in _step_daemons(prefix) if node is None or place == node]
    for pid, environment in _living():
        own = conf in environment and any(item.startswith(b"SLURM_JOB_ID=") for item in environment)
        if own and (node is None or f"SLURMD_NODENAME={node}".encode() in environment):
            found.append(pid)
    return found


def _step_daemons(prefix: Path) -> Iterator[tuple[int, str]]:
    """(process id, node) of this cluster's step daemons, known by the node's log file that each holds open.

    Their environment tells nothing in newer releases (24.11 starts them with an empty one), and their parent is gone
    once the node's slurmd was killed.
    """
    logs = {str(path): path.stem.removeprefix("slurmd-") for path in (prefix / "log").glob("slurmd-*.log")}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if not (entry / "comm").read_text().startswith("slurmstepd"):
                continue
            for descriptor in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if (node := logs.get(str(descriptor.readlink()))) is not None:
                        yield int(entry.name), node
                        break


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("start", "stop", "reap"))
    parser.add_argument("prefix", type=Path)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=2, help="fake GPUs on each node")
    parser.add_argument("--no-accounting", action="store_true", help="no slurmdbd, no MariaDB, no sacct")
    arguments = parser.parse_args(argv)
    prefix: Path = arguments.prefix.absolute()
    if arguments.action == "reap":
        sys.stdin.read()
    if arguments.action == "start":
        missing = missing_programs(not arguments.no_accounting)
        if missing:
            parser.error(
                f"not installed: {', '.join(missing)}; apt-get install slurm-wlm slurm-wlm-basic-plugins "
                "slurmdbd munge slurm-client mariadb-server"
            )
        if (prefix / "cluster.json").exists():
            parser.error(f"{prefix} already holds a cluster; stop it first")
        cluster = Cluster.create(
            prefix, nodes=arguments.nodes, gpus=arguments.gpus, accounting=not arguments.no_accounting
        )
        cluster.start()
        print(f"SLURM_CONF={prefix}/slurm.conf")
    elif (prefix / "cluster.json").exists():
        Cluster.open(prefix).stop(remove=True)
    elif arguments.action == "reap":
        shutil.rmtree(prefix, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
