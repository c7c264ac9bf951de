"""What an allocation asks sbatch for: parameters from settings and request, and the script they become."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompttuner.config import SlurmSettings
from prompttuner.errors import ConfigError
from prompttuner.sbatch_templates import check_lines, render
from prompttuner.slurm.backend import AllocationRequest
from prompttuner.slurm.ends import staged

__all__ = ["DEFAULT_WALLTIME_S", "OWN_OPTIONS", "Script", "agent_script", "build_script"]

DEFAULT_WALLTIME_S = 4 * 3600
SUBMITIT_NAMES = {
    "partition", "cpus-per-task", "qos", "mem-per-gpu", "mem-per-cpu", "constraint", "exclude", "account",
    "mail-type", "mail-user", "nodelist", "dependency", "exclusive",
}  # fmt: skip
"""Options of sbatch that submitit has a parameter for; all others go through its ``additional_parameters``."""
OWN_OPTIONS = frozenset(
    {
        "job-name", "comment", "output", "error", "open-mode", "array", "requeue", "no-requeue", "wait", "parsable",
        "nodes", "ntasks", "ntasks-per-node", "time", "gres", "gpus", "gpus-per-node", "gpus-per-task", "signal",
        "chdir", "wrap", "test-only", "deadline", "begin", "hold", "input", "export", "export-file", "wckey",
    }
)  # fmt: skip
"""sbatch options that prompttuner sets itself or that would break an allocation."""


MEMORY_OPTIONS = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})


@dataclass(frozen=True, slots=True)
class Script:
    """One sbatch call, complete: what a dry run shows is what a real run sends."""

    parameters: dict[str, Any]
    """For ``submitit.SlurmExecutor.update_parameters``."""
    python: str
    """Shell words that start Python in the allocation."""
    setup: list[str]
    command_line: list[str]
    """Options on sbatch's command line: no environment variable or template can override them."""
    offline: bool
    templates: Path | None
    folder: Path
    """submitit's folder (script, pickle)."""
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self, submitit_text: str) -> str:
        """The script, from the one that submitit makes of the parameters.

        Raises:
            ConfigError: the user's template drops the command or is broken.
        """
        lines = submitit_text.splitlines()
        directives = [line for line in lines if line.startswith("#SBATCH ")]
        command = [self._naming(), *(line for line in lines[lines.index("# command") + 1 :] if line)]
        values = {"directives": directives, "setup": self.setup, "command": command, "offline": self.offline}
        text = render("agent.sh.j2", {**values, **self.values}, self.templates)
        if not text.startswith("#!") or not all(line in text for line in command):
            raise ConfigError(
                f"{self.templates}/agent.sh.j2 must begin with '#!' and hold all lines of 'command': the agent would "
                "not start"
            )
        return text

    def _naming(self) -> str:
        """A shell line that gives the pickle the name that submitit looks for, where submitit itself could not.

        It does so after sbatch has answered. If the answer is lost, or the controller killed meanwhile, the allocation
        would wait for that name in vain. A link, so that whoever comes second changes nothing.
        """
        folder = shlex.quote(str(self.folder))
        link = f'ln -- "$made" {folder}/"${{SLURM_JOB_ID}}_submitted.pkl" 2>/dev/null || :'
        return (
            f"for made in {folder}/*.pkl; do case $made in *_submitted.pkl | *_result.pkl) ;; *) {link} ;; esac; done"
        )


def build_script(
    request: AllocationRequest,
    settings: SlurmSettings,
    *,
    walltime_s: float,
    offline: bool = True,
    templates: Path | None = None,
    mem_mb: int | None = None,
) -> Script:
    """Everything that one allocation asks for.

    Raises:
        ConfigError: an option that prompttuner sets itself, or set-up lines that cannot be.
    """
    log = _pattern(request.folder / "log.txt")
    # A short allocation must not get its signal as soon as it starts.
    before_s = max(10, min(settings.signal_before_s, int(walltime_s // 4)))
    parameters: dict[str, Any] = {
        "job_name": request.name,
        "comment": request.uuid,
        "time": max(1, int(walltime_s // 60)),  # rounded down: never above the partition's limit
        "nodes": 1,
        "ntasks_per_node": 1,
        "signal_delay_s": before_s,
        "wckey": None,
        "stderr_to_stdout": True,
        "srun_args": [f"--output={log}", "--open-mode=append"],
    }
    additional: dict[str, Any] = {
        "output": log,
        "chdir": str(request.folder),
        "signal": f"{settings.signal}@{before_s}",
        "no-requeue": True,
    }
    options = {**_from_settings(settings), **_checked(request.options)}
    if mem_mb is not None and not options.keys() & MEMORY_OPTIONS:
        options["mem"] = f"{mem_mb}M"
    for name, value in options.items():
        chosen = True if value == "" else value
        if name in SUBMITIT_NAMES:
            parameters[name.replace("-", "_")] = chosen
        else:
            additional[name] = chosen
    parameters.update(_gpus(request, settings))
    python = settings.python or shlex.quote(sys.executable)
    if settings.launcher:
        python = f"{settings.launcher} {python}"
        if settings.launcher.split()[0] == "srun":
            parameters["use_srun"] = False
    parameters["additional_parameters"] = additional
    return Script(
        parameters,
        python,
        staged(request.folder, check_lines(settings.setup, "setup"), check_lines(request.setup, "setup")),
        ["--no-requeue", f"--job-name={request.name}", f"--comment={request.uuid}"],
        offline,
        templates,
        request.folder / "submitit",
        {"request": request},
    )


def agent_script(script: Script) -> str:
    """The script as it would be submitted (``render agent``, ``--dry-run``); needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{script.python} -u -m submitit.core._submit {shlex.quote(str(script.folder))}"
    return script.text(_make_sbatch_string(command=command, folder=script.folder, **script.parameters))


def _gpus(request: AllocationRequest, settings: SlurmSettings) -> dict[str, Any]:
    kind = request.gpu_type or settings.gpu_type
    count = f"{kind}:{request.gpus}" if kind else str(request.gpus)
    if request.gpus < 1 or settings.gpu_directive == "none":
        return {}
    if settings.gpu_directive == "gres":
        return {"gres": f"gpu:{count}"}
    return {"gpus_per_node": count}


def _from_settings(settings: SlurmSettings) -> dict[str, str]:
    """Sbatch options that the settings ask for."""
    named = {
        "account": settings.account,
        "qos": settings.qos,
        "partition": settings.partition,
        "constraint": settings.constraint,
        "reservation": settings.reservation,
        "mem": settings.mem,
        "mail-user": settings.mail_user,
        "mail-type": settings.mail_type,
        "cpus-per-task": None if settings.cpus_per_agent is None else str(settings.cpus_per_agent),
    }
    return {**{key: value for key, value in named.items() if value is not None}, **_checked(settings.extra)}


def _checked(options: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for raw, value in options.items():
        name = raw.lstrip("-").replace("_", "-")
        if name in OWN_OPTIONS:
            raise ConfigError(f"sbatch option --{name} is set by prompttuner itself and cannot be given")
        if not name.replace("-", "").isalnum():
            raise ConfigError(f"{raw!r} is not the name of an sbatch option")
        if any(ord(char) < 32 for char in value):
            raise ConfigError(f"sbatch option --{name}: control characters in {value!r}")
        found[name] = value
    return found


def _pattern(path: Path) -> str:
    """A path in which Slurm replaces nothing."""
    return str(path).replace("%", "%%")
