"""What a site is like, as far as Slurm tells: partitions, limits, GPUs, accounting. What is unknown stays None."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prompttuner.slurm.answers import parse_record
from prompttuner.slurm.command import ClientError, SlurmClient
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
    "partition_walltime",
]

GPU_MEMORY_GB = {
    "p100": 12, "v100": 16, "t4": 15, "rtx2080": 11, "2080": 11, "rtx3090": 24, "3090": 24, "rtx4090": 24, "4090": 24,
    "rtx8000": 48, "rtx6000": 24, "rtx5000": 16, "a10": 22, "a16": 15, "a30": 24, "a40": 45, "l4": 23, "l40": 45,
    "l40s": 45, "a100": 40, "a800": 80, "h100": 80, "h200": 141, "h800": 80, "gh200": 96, "b200": 180, "mi210": 64,
    "mi250": 64, "mi300": 192,
}  # fmt: skip
"""Smallest memory that a type of this name is sold with, in GB (makers' data sheets); a size in the name wins."""


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
    unknown: tuple[str, ...] = ()
    """What could not be found out, and why."""

    def partition(self, name: str | None) -> Partition | None:
        """The named partition, or the default one."""
        for partition in self.partitions:
            if partition.name == name or (name is None and partition.default):
                return partition
        return None

    def gpu_partitions(self) -> list[Partition]:
        """Partitions with GPUs that are up: the default one first, then those that are not preempted."""
        found = [partition for partition in self.partitions if partition.gpus and partition.up]
        return sorted(found, key=lambda partition: (not partition.default, partition.preemptable, partition.name))


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
    for row in ask("GPUs", "sinfo", "--noheader", "--all", "--format=%R|%D|%G").splitlines():
        name, count, text = ([*row.split("|", 2), "", ""])[:3]
        for kind, number in parse_gres(text).items():
            per_type = gres.setdefault(name, {})
            per_type[kind] = per_type.get(kind, 0) + number * (int(count) if count.isdigit() else 1)
    partitions = parse_partitions(
        ask("partitions", "scontrol", "--all", "--oneliner", "show", "partition"),
        gres,
        config.get("PreemptMode", "OFF"),
    )
    accounting = config.get("AccountingStorageType", "").endswith("slurmdbd")
    limits = Limits()
    if accounting:
        user = f"user={_user_name()}"
        limits = parse_limits(
            ask("limits", "sacctmgr", "-nP", "show", "assoc", user, f"cluster={config.get('ClusterName', '')}",
                "format=Account,QOS,MaxJobs,MaxSubmit,GrpTRES,MaxWall"),
            ask("QOS", "sacctmgr", "-nP", "show", "qos", "format=Name,MaxJobsPU,MaxSubmitPU,MaxTRESPU,MaxWall"),
        )  # fmt: skip
    return Site(
        config.get("ClusterName", "unknown"),
        config.get("SLURM_VERSION", "unknown"),
        partitions,
        accounting,
        limits,
        _reservations(ask("reservations", "scontrol", "--oneliner", "show", "reservation")),
        "enable" in config.get("ScronParameters", ""),
        tuple(sorted(set(ask("node names", "sinfo", "--noheader", "--all", "--Node", "--format=%n").split()))),
        tuple(unknown),
    )


def partition_walltime(client: SlurmClient, name: str | None) -> float | None:
    """Limit, else default of a partition (the default one if not named); None when unlimited or unknown."""
    for partition in parse_partitions(client.run("scontrol", "--all", "--oneliner", "show", "partition"), {}, "OFF"):
        if partition.name == name or (name is None and partition.default):
            return partition.walltime_s
    return None


def parse_partitions(text: str, gres: Mapping[str, Mapping[str, int]], preempt_mode: str) -> tuple[Partition, ...]:
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
            )
        )
    lowest = min((partition.tier for partition in found), default=1)
    highest = max((partition.tier for partition in found), default=1)
    # A partition is only preempted by one of a higher tier.
    return tuple(
        partition if partition.tier < highest or lowest == highest else _never_preempted(partition)
        for partition in found
    )


def parse_gres(text: str) -> dict[str, int]:
    """GPUs of one node by type: ``gpu:a100:4(S:0-1),nvme:1`` -> ``{"a100": 4}``; ``gpu:2`` -> ``{"gpu": 2}``."""
    found: dict[str, int] = {}
    for match in re.finditer(r"(?:^|,)(?:gres/)?gpu(?::([A-Za-z][\w.-]*))?(?::|=)(\d{1,4})", text):
        kind = match.group(1) or "gpu"
        found[kind] = found.get(kind, 0) + int(match.group(2))
    return found


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


def _never_preempted(partition: Partition) -> Partition:
    return Partition(
        partition.name, partition.default, partition.up, partition.max_time_s, partition.default_time_s, partition.tier,
        False, partition.gpus, partition.qos,
    )  # fmt: skip


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
