"""What Slurm's reasons for a waiting job mean: will it start by itself, only after something changes, or never?"""

from __future__ import annotations

import re
from enum import StrEnum

__all__ = ["Prospect", "in_words", "prospect_of"]


class Prospect(StrEnum):
    """Whether a waiting job can be counted on."""

    QUEUE = "queue"
    """It starts by itself, sooner or later. A reason that is not known counts as this."""
    LIMIT = "limit"
    """Not with what you, your account or your group hold now."""
    NEVER = "never"
    """Not as it was asked for, however long it waits."""
    HELD = "held"
    """Not before somebody releases it."""


_NEVER = re.compile(
    r"\w*(PerJob|PerNode|PerJobLimit|PerNodeLimit)|(QOS|Assoc)Min\w+|MaxMemPerLimit|Partition(TimeLimit|NodeLimit)|"
    r"(Association|QOS)TimeLimit|DependencyNeverSatisfied|BadConstraints|Invalid(Account|QOS)|"
    r"(Account|QOS)NotAllowed|QOSUsageThreshold"
)
_LIMIT = re.compile(r"(Assoc|QOS)(Grp|Max)\w+|Max\w+Per(Account|User)\w*|(Association|QOS)(Job|Resource)Limit")
_HELD = re.compile(r"JobHeld(User|Admin)|RESV_DEL_HOLD|SPECIAL_EXIT|JobLaunchFailure|launch_failed_requeued_held")
_WORDS = {
    Prospect.LIMIT: "a limit of the site: nothing more starts before something that you, your account or your group "
    "holds is given back; lower max_gpus to what may be held",
    Prospect.NEVER: "it can never start as it was asked for: `prompttuner doctor` compares the settings with the site",
    Prospect.HELD: "it is held: `scontrol release` lets it go on",
}
_HINTS = {
    "PartitionTimeLimit": "it asks for more time than its partition allows: lower slurm.walltime_s",
    "DependencyNeverSatisfied": "the job that it waits for has failed: give it back with `prompttuner pool release`",
    "InvalidAccount": "its account may not be used: set slurm.account",
    "AccountNotAllowed": "its account may not use the partition: set slurm.account or slurm.partition",
    "InvalidQOS": "its QOS may not be used: set slurm.qos",
    "QOSNotAllowed": "its QOS may not use the partition: set slurm.qos or slurm.partition",
    "BadConstraints": "no node fits what it asks for: see slurm.constraint, slurm.mem and slurm.gpu_type",
    "MaxMemPerLimit": "it asks for more memory than may be had: lower slurm.mem",
}


def prospect_of(reason: str) -> Prospect:
    """What a reason (``QOSMaxGRESPerUser``, ``ReqNodeNotAvail, UnavailableNodes:n1``) lets one expect."""
    word = _first(reason)
    for pattern, prospect in ((_HELD, Prospect.HELD), (_NEVER, Prospect.NEVER), (_LIMIT, Prospect.LIMIT)):
        if pattern.fullmatch(word):
            return prospect
    return Prospect.QUEUE


def in_words(reason: str) -> str:
    """The reason in Slurm's word and, where it matters, in ours."""
    hint = _HINTS.get(_first(reason)) or _WORDS.get(prospect_of(reason))
    return reason if hint is None else f"{reason}: {hint}"


def _first(reason: str) -> str:
    return re.split(r"[\s,(]", reason.strip().strip("()"), maxsplit=1)[0]
