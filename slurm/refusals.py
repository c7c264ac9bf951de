"""What to set when sbatch says no: Slurm's own words, and the setting that they are about."""

from __future__ import annotations

import re

__all__ = ["what_to_set"]

_ADVICE = (
    (
        r"invalid account or account/partition|invalid account|account .*not",
        "set slurm.account to one that you may use",
    ),
    (r"invalid qos|qos .*not", "set slurm.qos to one that you may use there"),
    (r"invalid partition|no partition specified", "set slurm.partition (`sinfo` lists them)"),
    (r"time limit is invalid|requested time limit", "lower slurm.walltime_s to what the partition allows"),
    (r"memory specification|memory required", "lower slurm.mem to what a node has"),
    (
        r"temporarily unable to accept|maximum number of jobs|job count",
        "the site's queue is full: it is tried again later",
    ),
    (r"job violates accounting/qos policy|submit limit|policy", "lower max_jobs, or see slurm.qos and slurm.account"),
    (
        r"node configuration is not available|nodes? .*not available",
        "see slurm.gpu_type, slurm.constraint and slurm.mem",
    ),
    (r"invalid (generic|gres)|gres", "see slurm.gpu_type and slurm.gpu_directive"),
    (r"license", "see licenses in slurm.extra"),
    (r"feature", "see slurm.constraint"),
)


def what_to_set(said: str) -> str:
    """The advice for a refusal; where the words are not known, to ask doctor."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, said, re.IGNORECASE):
            return advice
    return "`prompttuner doctor` asks Slurm with the very script"
