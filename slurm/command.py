"""Runs Slurm's client commands: bounded in time, no input, no traces of a surrounding job."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from prompttuner.errors import BackendError

__all__ = ["ClientError", "ClientMissing", "ClientTimeout", "SlurmClient", "chunks", "foreign_variables"]

KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
"""How to reach and to convince Slurm; everything else of these families describes another job or changes formats."""
FOREIGN = ("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "PMI_", "PMIX_")
IDS_A_CALL = 200
"""Job ids on one command line."""


class ClientError(BackendError):
    """A Slurm command answered with an error; the message is its own."""


class ClientTimeout(ClientError):
    """A Slurm command did not answer in time."""


class ClientMissing(ClientError):
    """A Slurm command is not installed here."""


def foreign_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that must not reach a Slurm command: those of a surrounding job and of the user's formats."""
    return sorted(key for key in environment if key.startswith(FOREIGN) and key not in KEPT)


def chunks(items: Sequence[str], size: int = IDS_A_CALL) -> list[Sequence[str]]:
    """``items`` in pieces that fit on a command line."""
    return [items[start : start + size] for start in range(0, len(items), size)]


class SlurmClient:
    """Calls Slurm's commands. Times in their answers are UTC, whatever the host's zone."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self.calls = 0
        """Commands run so far; tests and metrics count them."""

    def run(self, *command: str, submits: bool = False) -> str:
        """Standard output of a command.

        ``submits``: the environment goes along into a job, so it stays as it is (less the variables of a surrounding
        job).

        Raises:
            ClientMissing: not installed.
            ClientTimeout: no answer within ``timeout_s``.
            ClientError: any other failure, with what the command said.
        """
        environment = {key: value for key, value in os.environ.items() if key not in foreign_variables(os.environ)}
        if not submits:
            environment.update(LC_ALL="C", TZ="UTC0")
        self.calls += 1
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise ClientMissing(
                f"{command[0]} is not on PATH: run this on a login node, or load the site's Slurm module"
            ) from None
        except subprocess.TimeoutExpired:
            raise ClientTimeout(f"{command[0]} did not answer within {self.timeout_s:g} s") from None
        except OSError as error:
            raise ClientError(f"{command[0]} cannot be run: {error}") from None
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise ClientError(_brief(said) or f"{command[0]} ended with code {done.returncode}")
        return done.stdout.decode(errors="replace")


def _brief(text: str) -> str:
    """The gist of an error: at most three lines, control characters removed."""
    lines = [re.sub(r"[^\x20-\x7e]", " ", line).strip() for line in text.splitlines()]
    return "; ".join([line for line in lines if line][:3])[:500]
