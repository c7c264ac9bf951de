"""Asks Slurm for one allocation, through submitit; tells a refusal from a lost answer."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from prompttuner.errors import ConfigError
from prompttuner.files import make_private_dir
from prompttuner.slurm.backend import AllocationRequest, SubmitRefused, SubmitTimeout, SubmitUnknown
from prompttuner.slurm.command import foreign_variables
from prompttuner.slurm.script import Script

__all__ = ["classify", "sbatch_command", "submit"]

TIMED_OUT = frozenset({124, 137, -9})
"""How timeout(1) ends when it had to kill."""
NOT_RUN = frozenset({126, 127})
LOST = re.compile(
    r"timed out|time-out|timeout|zero bytes|unexpected message|communication|connection (reset|refused|failure)|"
    r"unable to contact|connect failure|transport endpoint|socket|not responding|temporarily|protocol|interrupted|"
    r"slurmctld|slurm controller",
    re.IGNORECASE,
)
"""What sbatch says when it cannot know whether the controller took the job."""
NO = re.compile(r"Batch job submission failed|(un)?recogni[sz]ed option|invalid|not permitted|denied|ambiguous", re.I)
"""What sbatch says when the answer is no."""


def sbatch_command(script: Script, path: Path, timeout_s: float) -> list[str]:
    """sbatch, bounded in time, with no input and without the variables of a surrounding job."""
    scrub = [word for key in foreign_variables(os.environ) for word in ("-u", key)]
    # KILL at once: with MaxJobCount reached sbatch sleeps and tries again by itself, for minutes, and one that outlived
    # the bound could submit after another controller has given the intent up.
    bounded = ["timeout", "--signal=KILL", f"{timeout_s:g}", "sbatch", *script.command_line, str(path)]
    return ["sh", "-c", 'exec "$@" </dev/null', "sh", "env", *scrub, *bounded]


def submit(
    script: Script, request: AllocationRequest, timeout_s: float, entry: Callable[[str], Any] | None = None
) -> str:
    """Submit; returns Slurm's job id.

    The pickle that submitit leaves for the allocation holds the name of ``entry`` (the agent) and the path of its
    settings, nothing else.

    Raises:
        SubmitRefused: Slurm said no; nothing was started.
        SubmitUnknown: it may or may not have been started.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if entry is None:
        entry = import_module("prompttuner.slurm.agent").main

    class Executor(SlurmExecutor):  # type: ignore[misc]  # submitit carries no types
        """submitit's executor with our template and a bounded sbatch."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script.text(super()._make_submission_file_text(command, uid))

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return sbatch_command(script, submission_file_path, timeout_s)

    make_private_dir(script.folder)
    try:
        executor = Executor(folder=script.folder, python=script.python)
        executor.update_parameters(**script.parameters)
        with _private_files():
            return str(executor.submit(entry, str(request.folder / "settings.json")).job_id)
    except FailedJobError as error:
        raise classify(getattr(error.__cause__, "returncode", None), str(error), timeout_s) from None
    except FailedSubmissionError as error:
        raise SubmitUnknown(f"sbatch gave no job id: {error}") from None
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise SubmitRefused(f"sbatch parameters cannot be right: {error}") from None
    except RuntimeError as error:
        raise SubmitRefused(f"{error}; load the site's Slurm module, or run this on a login node") from None
    except OSError as error:
        # The script, the pickle or the answer could not be written: sbatch may have run in between.
        raise SubmitUnknown(f"the allocation's folder cannot be written: {error}") from None


def classify(code: int | None, said: str, timeout_s: float = 0.0) -> SubmitRefused | SubmitUnknown:
    """What a failed sbatch means. What is not clearly a refusal is unknown: the job is then looked for by name."""
    words = " ".join(said.split())[:500]
    text = words or f"sbatch ended with code {code} and said nothing"
    if code in NOT_RUN:
        return SubmitRefused(f"sbatch cannot be run here: {text}")
    if code in TIMED_OUT:
        bound = f" within {timeout_s:g} s (slurm.call_timeout_s)" if timeout_s else " in time"
        return SubmitTimeout(f"sbatch did not answer{bound} and was ended" + (f"; it said: {words}" if words else ""))
    if NO.search(text) and not LOST.search(text):
        return SubmitRefused(text.removeprefix("sbatch: error: "))
    return SubmitUnknown(text)


@contextlib.contextmanager
def _private_files() -> Any:
    """A umask for files that submitit opens: it gives them no mode of their own."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
