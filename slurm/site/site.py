"""What a site is like, as far as Slurm tells: partitions, limits, GPUs, accounting. What is unknown stays None."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from prompttuner.slurm.answers import parse_record
from prompttuner.slurm.command import ClientError, SlurmClient
from prompttuner.slurm.site.memory import MemoryRule, parse_rule
from prompttuner.slurm.site.waits import SACCT_WAITS, Waits, parse_waits
from prompttuner.slurm.words import parse_duration, parse_time

__all__ = [
    "GPU_MEMORY_GB",
    "Limits",
    "Partition",
    "Reservation",
    "Site",
    "detect_site",
    "parse_gres",
    "parse_limits",
    "parse_partitions",
    "parse_qos",
    "parse_tree",
    "partition_memory",
    "partition_walltime",
]

GPU_MEMORY_GB = {
    "p100": 12, "v100": 16, "t4": 15, "rtx2080": 11, "2080": 11, "rtx3090": 24, "3090": 24, "rtx4090": 24, "4090": 24,
    "rtx8000": 48, "rtx6000": 24, "rtx5000": 16, "a10": 22, "a16": 15, "a30": 24, "a40": 45, "l4": 23, "l40": 45,
    "l40s": 45, "a100": 40, "a800": 80, "h100": 80, "h200": 141, "h800": 80, "gh200": 96, "b200": 180, "mi210": 64,
    "mi250": 64, "mi300": 192,
}  # fmt: skip
"""Smallest memory that a type of this name is sold with, in GB (makers' data sheets); a size in the name wins."""


SHORT_S = 3600.0
QOS_FIELDS = "Name,MaxJobsPU,MaxSubmitPU,MaxTRESPU,MaxWall,GrpTRES,GrpJobs,GrpSubmit"
TREE_FIELDS = "Account,User,ParentName,GrpTRES,GrpJobs,GrpSubmit"
OUT_OF_SERVICE = re.compile(r"drain|down|fail|maint|unknown|future|no_respond|power.*down", re.IGNORECASE)
"""States of nodes, as sinfo shows them, whose GPUs cannot be counted on."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition as Slurm describes it; None where it does not say."""

    name: str
    default: bool
    up: bool
    max_time_s: float | None
    """None when unlimited or unknown."""
    default_time_s: float | None
    tier: int
    preemptable: bool
    gpus: Mapping[str, int] = field(default_factory=dict)
    """GPUs by type (``gpu`` when the site names none)."""
    qos: str | None = None
    memory: MemoryRule = field(default_factory=MemoryRule)

    @property
    def is_short(self) -> bool:
        """Its jobs end so soon that loading an LLM for one hardly pays."""
        return self.max_time_s is not None and self.max_time_s < SHORT_S

    @property
    def walltime_s(self) -> float | None:
        """What to ask for when the user says nothing: the limit, else the default."""
        return self.max_time_s if self.max_time_s is not None else self.default_time_s


@dataclass(frozen=True, slots=True)
class Limits:
    """The tightest of what associations and QOS allow this user; None where nothing is said."""

    gpus: int | None = None
    jobs: int | None = None
    submitted: int | None = None
    """Jobs at a time, queued ones included."""
    walltime_s: float | None = None
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()

    def within(self, other: Limits | None) -> Limits:
        """The tighter of both, for what may be held."""
        if other is None:
            return self
        return replace(
            self,
            gpus=_whole(_tightest((self.gpus, other.gpus))),
            jobs=_whole(_tightest((self.jobs, other.jobs))),
            submitted=_whole(_tightest((self.submitted, other.submitted))),
            walltime_s=_tightest((self.walltime_s, other.walltime_s)),
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """One reservation."""

    name: str
    start_at: float
    end_at: float
    maintenance: bool


@dataclass(frozen=True, slots=True)
class Site:
    """What is known of a site."""

    cluster: str
    version: str
    partitions: tuple[Partition, ...]
    accounting: bool
    limits: Limits
    reservations: tuple[Reservation, ...]
    scron: bool
    """scrontab is switched on."""
    hosts: tuple[str, ...]
    """Host names of the compute nodes."""
    qos_limits: Mapping[str, Limits] = field(default_factory=dict)
    """By QOS."""
    waits: Mapping[str, Waits] = field(default_factory=dict)
    """Waits of the last week by partition, where accounting tells."""
    unknown: tuple[str, ...] = ()
    """What could not be found out, and why."""

    def partition(self, name: str | None) -> Partition | None:
        """The named partition, or the default one."""
        for partition in self.partitions:
            if partition.name == name or (name is None and partition.default):
                return partition
        return None

    def gpu_partitions(self) -> list[Partition]:
        """Partitions with GPUs that are up: long enough ones first, then the default one, those not preempted."""
        found = [partition for partition in self.partitions if partition.gpus and partition.up]
        return sorted(found, key=lambda one: (one.is_short, not one.default, one.preemptable, one.name))

    def limits_in(self, partition: Partition | None) -> Limits:
        """What may be held in a partition: by association and QOS, and by the partition's own QOS."""
        own = None if partition is None or partition.qos is None else self.qos_limits.get(partition.qos)
        return self.limits.within(own)


def detect_site(client: SlurmClient) -> Site:
    """Ask Slurm. What it does not tell is listed in ``Site.unknown``.

    Raises:
        ClientError: Slurm's controller does not answer at all.
    """
    config = _config(client.run("scontrol", "show", "config"))
    unknown: list[str] = []

    def ask(what: str, *command: str) -> str:
        try:
            return client.run(*command)
        except ClientError as error:
            unknown.append(f"{what}: {error}")
            return ""

    gres: dict[str, dict[str, int]] = {}
    for row in ask("GPUs", "sinfo", "--noheader", "--all", "--format=%R|%D|%T|%G").splitlines():
        name, count, state, text = ([*row.split("|", 3), "", "", ""])[:4]
        if OUT_OF_SERVICE.match(state):
            continue
        for kind, number in parse_gres(text).items():
            per_type = gres.setdefault(name, {})
            per_type[kind] = per_type.get(kind, 0) + number * (int(count) if count.isdigit() else 1)
    partitions = parse_partitions(
        ask("partitions", "scontrol", "--all", "--oneliner", "show", "partition"),
        gres,
        config.get("PreemptMode", "OFF"),
        config,
    )
    accounting = config.get("AccountingStorageType", "").endswith("slurmdbd")
    limits, by_qos, waits = Limits(), {}, {}
    if accounting:
        cluster = f"cluster={config.get('ClusterName', '')}"
        qos = ask("QOS", "sacctmgr", "-nP", "show", "qos", f"format={QOS_FIELDS}")
        by_qos = parse_qos(qos)
        limits = parse_limits(
            ask("limits", "sacctmgr", "-nP", "show", "assoc", f"user={_user_name()}", cluster,
                "format=Account,QOS,MaxJobs,MaxSubmit,GrpTRES,MaxWall"),
            "\n".join("|".join(line.split("|")[:5]) for line in qos.splitlines()),
        )  # fmt: skip
        tree = ask("limits of accounts", "sacctmgr", "-nP", "show", "assoc", cluster, f"format={TREE_FIELDS}")
        limits = limits.within(parse_tree(tree, limits.accounts))
        for partition in partitions:
            if partition.gpus:
                waits[partition.name] = _waits(client, partition.name)
    return Site(
        config.get("ClusterName", "unknown"),
        config.get("SLURM_VERSION", "unknown"),
        partitions,
        accounting,
        limits,
        _reservations(ask("reservations", "scontrol", "--oneliner", "show", "reservation")),
        "enable" in config.get("ScronParameters", ""),
        tuple(sorted(set(ask("node names", "sinfo", "--noheader", "--all", "--Node", "--format=%n").split()))),
        by_qos,
        waits,
        tuple(unknown),
    )


def _waits(client: SlurmClient, partition: str) -> Waits:
    """Waits of the last week; nothing where accounting does not tell, as at sites that hide other users' jobs."""
    try:
        return parse_waits(
            client.run(
                "sacct", "--noheader", "--parsable2", "--allocations", "--allusers", f"--partition={partition}",
                "--starttime=now-7days", f"--format={SACCT_WAITS}",
            )
        )  # fmt: skip
    except ClientError:
        return Waits()


def partition_memory(client: SlurmClient, name: str | None) -> MemoryRule:
    """What a partition (the default one if not named) gives and allows; nothing is said of one that is not there."""
    config = _config(client.run("scontrol", "show", "config"))
    text = client.run("scontrol", "--all", "--oneliner", "show", "partition")
    for partition in parse_partitions(text, {}, "OFF", config):
        if partition.name == name or (name is None and partition.default):
            return partition.memory
    return MemoryRule()


def partition_walltime(client: SlurmClient, name: str | None) -> float | None:
    """Limit, else default of a partition (the default one if not named); None when unlimited or unknown."""
    for partition in parse_partitions(client.run("scontrol", "--all", "--oneliner", "show", "partition"), {}, "OFF"):
        if partition.name == name or (name is None and partition.default):
            return partition.walltime_s
    return None


def parse_partitions(
    text: str,
    gres: Mapping[str, Mapping[str, int]],
    preempt_mode: str,
    config: Mapping[str, str] | None = None,
) -> tuple[Partition, ...]:
    """``scontrol --oneliner show partition``, with GPUs by partition and the cluster's PreemptMode."""
    found = []
    for record in parse_record(text):
        name = record.get("PartitionName")
        if not name:
            continue
        mode = record.get("PreemptMode", preempt_mode)
        found.append(
            Partition(
                name,
                record.get("Default") == "YES",
                record.get("State", "UP") == "UP",
                _finite(record.get("MaxTime")),
                _finite(record.get("DefaultTime")),
                int(record.get("PriorityTier", "1")) if record.get("PriorityTier", "1").isdigit() else 1,
                mode.upper() not in {"OFF", "GANG"},
                dict(gres.get(name, {})),
                None if record.get("QoS", "N/A") in {"N/A", ""} else record["QoS"],
                parse_rule(record, config or {}),
            )
        )
    highest = max((partition.tier for partition in found), default=1)
    kind = (config or {}).get("PreemptType", "preempt/partition_prio")
    if kind == "preempt/none":
        return tuple(replace(partition, preemptable=False) for partition in found)
    # A partition is only preempted by one of a higher tier; where all are equal none is.
    return tuple(
        partition if partition.tier < highest else replace(partition, preemptable=False) for partition in found
    )


def parse_gres(text: str) -> dict[str, int]:
    """GPUs of one node by type: ``gpu:a100:4(S:0-1),nvme:1`` -> ``{"a100": 4}``; ``gpu:2`` -> ``{"gpu": 2}``."""
    found: dict[str, int] = {}
    for match in re.finditer(r"(?:^|,)(?:gres/)?gpu(?::([A-Za-z][\w.-]*))?(?::|=)(\d{1,4})", text):
        kind = match.group(1) or "gpu"
        found[kind] = found.get(kind, 0) + int(match.group(2))
    return found


def parse_qos(text: str) -> dict[str, Limits]:
    """Limits by QOS: rows of ``sacctmgr -nP show qos format=QOS_FIELDS``. Those of all its users count."""
    found = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 8 and fields[0]:
            gpus = _tightest((_gpus(fields[3]), _gpus(fields[5])))
            jobs = _tightest((_int(fields[1]), _int(fields[6])))
            submitted = _tightest((_int(fields[2]), _int(fields[7])))
            found[fields[0]] = Limits(_whole(gpus), _whole(jobs), _whole(submitted), _finite(fields[4]))
    return found


def parse_tree(text: str, accounts: Iterable[str]) -> Limits:
    """Limits of accounts and of those above them: rows of ``sacctmgr -nP show assoc format=TREE_FIELDS``.

    Of several accounts the most generous counts.
    """
    rows: dict[str, tuple[str, float | None, float | None, float | None]] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 6 and fields[0] and not fields[1]:
            rows[fields[0]] = (fields[2], _gpus(fields[3]), _int(fields[4]), _int(fields[5]))
    chains = []
    for account in accounts:
        name = account
        chain: list[tuple[float | None, ...]] = []
        while name in rows and len(chain) <= len(rows):
            chain.append(rows[name][1:])
            name = rows[name][0]
        chains.append(tuple(_tightest(row[column] for row in chain) for column in range(3)))
    gpus, jobs, submitted = (_loosest(chain[column] for chain in chains) for column in range(3))
    return Limits(_whole(gpus), _whole(jobs), _whole(submitted))


def parse_limits(associations: str, qos: str) -> Limits:
    """The limits in what ``sacctmgr -nP`` prints.

    Rows of ``show assoc`` are (Account, QOS, MaxJobs, MaxSubmit, GrpTRES, MaxWall), those of ``show qos`` (Name,
    MaxJobsPU, MaxSubmitPU, MaxTRESPU, MaxWall). Of several accounts the most generous counts, of QOS those that the
    associations name.
    """
    accounts: list[str] = []
    names: set[str] = set()
    rows: list[tuple[float | None, ...]] = []
    for line in associations.splitlines():
        fields = line.split("|")
        if len(fields) == 6 and fields[0]:
            accounts.append(fields[0])
            names.update(name for name in fields[1].split(",") if name)
            rows.append((_int(fields[2]), _int(fields[3]), _gpus(fields[4]), _finite(fields[5])))
    from_assoc = [_loosest(row[column] for row in rows) for column in range(4)]
    rows = []
    for line in qos.splitlines():
        fields = line.split("|")
        if len(fields) == 5 and fields[0] in names:
            rows.append((_int(fields[1]), _int(fields[2]), _gpus(fields[3]), _finite(fields[4])))
    from_qos = [_loosest(row[column] for row in rows) for column in range(4)]
    jobs, submitted, gpus, wall = (_tightest(pair) for pair in zip(from_assoc, from_qos, strict=True))
    return Limits(
        None if gpus is None else int(gpus),
        None if jobs is None else int(jobs),
        None if submitted is None else int(submitted),
        wall,
        tuple(dict.fromkeys(accounts)),
        tuple(sorted(names)),
    )


def _config(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _reservations(text: str) -> tuple[Reservation, ...]:
    found = []
    for record in parse_record(text):
        start, end = parse_time(record.get("StartTime", "")), parse_time(record.get("EndTime", ""))
        if record.get("ReservationName") and start is not None and end is not None:
            found.append(Reservation(record["ReservationName"], start, end, "MAINT" in record.get("Flags", "")))
    return tuple(found)


def _user_name() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _finite(text: str | None) -> float | None:
    seconds = parse_duration(text) if text else None
    return seconds if seconds is not None and seconds != float("inf") else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _int(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _gpus(text: str) -> float | None:
    match = re.search(r"(?:^|,)gres/gpu=(\d+)", text)
    return float(match.group(1)) if match else None


def _loosest(values: Iterable[float | None]) -> float | None:
    """None (no limit) if any row has none."""
    found = list(values)
    known = [value for value in found if value is not None]
    return max(known) if found and len(known) == len(found) else None


def _tightest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
