"""Errors a user may see: each says what to do, and carries the exit code of the command."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ConfigError",
    "DataError",
    "DatabaseError",
    "HostError",
    "InterruptedByUser",
    "ModelError",
    "NotFound",
    "NotOwner",
    "PromptTunerError",
    "SpecError",
    "SpoolError",
    "StartsFail",
    "StateError",
    "Terminated",
]


class PromptTunerError(Exception):
    """Base of all errors whose message is meant for the user; the command line prints it without a traceback."""

    exit_code = 1


class SpecError(PromptTunerError):
    """A job spec, a flag or a request that cannot be right."""

    exit_code = 2


class DataError(SpecError):
    """Training or evaluation data that is missing, broken or has changed."""


class ConfigError(PromptTunerError):
    """A setting that cannot be right."""

    exit_code = 2


class HostError(ConfigError):
    """Something about this host that no job can help: an address that it does not have."""


class NotFound(PromptTunerError):
    """No such job, allocation, entry or file."""

    exit_code = 3


class StateError(PromptTunerError):
    """The object exists, but not in a state in which this can be done."""

    exit_code = 4


class NotOwner(PromptTunerError):
    """Another controller owns the state; the message says who."""

    exit_code = 5


class DatabaseError(PromptTunerError):
    """The database cannot be used: unreachable, from a newer version, full disk, damaged."""

    exit_code = 6


class SpoolError(PromptTunerError):
    """The spool cannot be used: unreadable, foreign files, full disk, another protocol."""

    exit_code = 6


class BackendError(PromptTunerError):
    """Slurm (or the local executor) refused or did not answer."""

    exit_code = 7


class ModelError(PromptTunerError):
    """A model that cannot be loaded, or does not fit."""

    exit_code = 8


class StartsFail(PromptTunerError):
    """Nothing can go on, as allocations end before they are warm; the message says why they do."""

    exit_code = 7


class InterruptedByUser(PromptTunerError):
    """Ctrl-C; nothing is lost."""

    exit_code = 130


class Terminated(PromptTunerError):
    """SIGTERM before the work was done; nothing is lost."""

    exit_code = 143
