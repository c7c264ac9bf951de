"""Configuration files of the throw-away Slurm cluster, as text."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClusterShape", "cgroup_conf", "dbd_conf", "gres_conf", "init_sql", "slurm_conf"]


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """What the cluster looks like; everything else is fixed."""

    prefix: Path
    user: str
    ports: dict[str, int]
    nodes: int = 4
    gpus: int = 2
    accounting: bool = True
    grace_s: int = 0
    """Seconds between the preemption signal and the kill, in the partition ``spare``."""
    node_timeout_s: int = 60
    little_memory: bool = False
    """Memory is handed out, 100 MB a CPU by default, and who takes more is killed."""
    version: tuple[int, int] = (22, 5)
    """Release of the Slurm that is installed: older ones refuse keys that they do not know."""

    @property
    def node_names(self) -> list[str]:
        return [f"n{index}" for index in range(1, self.nodes + 1)]


def slurm_conf(shape: ClusterShape) -> str:
    """slurm.conf: several nodes on this host, GPUs that Slurm assigns, no cgroups, and a scheduler in a hurry."""
    prefix, host = shape.prefix, socket.gethostname().split(".")[0]
    lines = f"""
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmUser={shape.user}
SlurmdUser={shape.user}
SlurmctldPort={shape.ports["slurmctld"]}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={prefix}/run/munge.socket
StateSaveLocation={prefix}/state
SlurmdSpoolDir={prefix}/slurmd/%n
SlurmctldPidFile={prefix}/run/slurmctld.own.pid
SlurmdPidFile={prefix}/run/slurmd-%n.own.pid
SlurmctldLogFile={prefix}/log/slurmctld.log
SlurmdLogFile={prefix}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1,bf_resolution=1,bf_continue
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=8
CompleteWait=0
EpilogMsgTime=0
InactiveLimit=0
MinJobAge=300
MessageTimeout=20
SlurmctldTimeout=30
SlurmdTimeout={shape.node_timeout_s}
ReturnToService=2
TreeWidth=64
""".strip().splitlines()
    if shape.little_memory:
        lines[lines.index("SelectTypeParameters=CR_Core")] = "SelectTypeParameters=CR_Core_Memory"
        lines += ["DefMemPerCPU=100", "JobAcctGatherParams=OverMemoryKill"]
    if shape.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={shape.ports['slurmdbd']}",
            f"AccountingStoragePass={prefix}/run/munge.socket",
            "AccountingStorageTRES=gres/gpu,gres/gpu:fake",
        ]
        if shape.version >= (21, 8):
            lines.append("AccountingStoreFlags=job_comment")
    for name in shape.node_names:
        lines.append(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={shape.ports[name]} CPUs=8 Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:fake:{shape.gpus} "
            "State=UNKNOWN"
        )
    nodes = f"n[1-{shape.nodes}]"
    lines += [
        f"PartitionName=gpu Nodes={nodes} Default=YES State=UP PriorityTier=10 PreemptMode=OFF "
        "MaxTime=7-00:00:00 DefaultTime=01:00:00",
        f"PartitionName=spare Nodes={nodes} State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={shape.grace_s} "
        "MaxTime=UNLIMITED",
        f"PartitionName=short Nodes={nodes} State=UP PriorityTier=10 PreemptMode=OFF MaxTime=00:05:00",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(shape: ClusterShape) -> str:
    """Fake GPUs: Slurm insists on device files, and a symbolic link to /dev/null is one."""
    return f"AutoDetect=off\nName=gpu Type=fake File={shape.prefix}/dev/nvidia[0-{shape.gpus - 1}]\n"


def cgroup_conf(shape: ClusterShape) -> str:
    """Nothing is constrained. Slurm 20.11 refuses ``CgroupPlugin``."""
    plugin = "CgroupPlugin=cgroup/v1\n" if shape.version >= (21, 8) else ""
    return f"{plugin}CgroupAutomount=no\nConstrainCores=no\nConstrainDevices=no\nConstrainRAMSpace=no\n"


def dbd_conf(shape: ClusterShape, password: str) -> str:
    """slurmdbd.conf (must be private)."""
    return f"""AuthType=auth/munge
AuthInfo=socket={shape.prefix}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={shape.ports["slurmdbd"]}
SlurmUser={shape.user}
LogFile={shape.prefix}/log/slurmdbd.log
PidFile={shape.prefix}/run/slurmdbd.own.pid
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={shape.ports["mariadb"]}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
"""


def init_sql(password: str) -> str:
    """Run by MariaDB at each start, before it takes connections."""
    return (
        "CREATE DATABASE IF NOT EXISTS slurm_acct;\n"
        f"CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        f"CREATE OR REPLACE USER 'slurm'@'localhost' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON *.* TO 'slurm'@'127.0.0.1';\nGRANT ALL ON *.* TO 'slurm'@'localhost';\n"
    )
