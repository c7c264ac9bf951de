"""Reads a script written for sbatch as a job of ours: directives are its spec, its body is set-up lines only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prompttuner.errors import SpecError

__all__ = ["BatchScript", "parse_batch_script"]

LONG = {
    "J": "job-name", "o": "output", "e": "error", "t": "time", "p": "partition", "A": "account", "q": "qos",
    "C": "constraint", "c": "cpus-per-task", "N": "nodes", "n": "ntasks", "G": "gpus", "W": "wait", "H": "hold",
    "D": "chdir", "Q": "quiet",
}  # fmt: skip
"""Short options of sbatch and their long names."""
WITHOUT_VALUE = frozenset({"wait", "hold", "parsable", "quiet", "requeue", "no-requeue"})
SETTINGS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "mem": "mem",
    "cpus-per-task": "cpus_per_agent", "reservation": "reservation",
}  # fmt: skip
"""Options that belong to allocations, which jobs share: they must agree with the settings."""
NOTED = {
    "time": "allocations have the walltime of the settings; use '#PROMPTTUNER --deadline' for the job's deadline",
    "output": "use `prompttuner logs`", "error": "use `prompttuner logs`", "open-mode": "use `prompttuner logs`",
    "mail-type": "set slurm.mail_type, or mail for missed deadlines", "mail-user": "set slurm.mail_user, or mail",
    "comment": "use '#PROMPTTUNER --note'",
}  # fmt: skip
"""Options that every script has and that have no meaning for a job here: said on standard error, not refused."""
HARMLESS = frozenset({"requeue", "no-requeue", "quiet"})
ADVICE = {
    "array": "use '#PROMPTTUNER --grid' or `prompttuner submit --grid`", "deadline": "use '#PROMPTTUNER --deadline'",
    "wrap": "the body may hold set-up lines only", "dependency": "jobs here do not depend on each other",
    "export": "write `export NAME=value` lines into the body", "test-only": "use `prompttuner submit --dry-run`",
}  # fmt: skip
GPU_OPTIONS = frozenset({"gres", "gpus", "gpus-per-node", "gpus-per-task"})
ALONE = frozenset({"nodes", "ntasks", "ntasks-per-node"})
"""Options that may only say 1."""
WITH_VALUE = {*SETTINGS, *NOTED, *ADVICE, *GPU_OPTIONS, *ALONE, *LONG.values()} - WITHOUT_VALUE - {"test-only"}
GPU = re.compile(r"(?:gres/|gpu:)?(?:gpu:)?(?:(?P<kind>[A-Za-z][\w.-]*):)?(?P<count>\d+)$")
SETUP = re.compile(
    r"(module|ml|spack load|source|\.|export|unset|umask|ulimit|set|"
    r"(conda|mamba|micromamba|pyenv)\s+(activate|deactivate|shell|use))(\s|$)"
)
HOOK = re.compile(r'eval\s+"?\$\((\S*/)?(conda|mamba|micromamba|pyenv)\s[\w\s.=/-]*\)"?$')
"""The one use of eval that set-up needs: the shell hook of an environment manager."""
DIRECTIVE = re.compile(r"#(SBATCH|PROMPTTUNER)\s+(.*)$")


@dataclass(slots=True)
class BatchScript:
    """A script's meaning."""

    spec: dict[str, Any] = field(default_factory=dict)
    """Values for the job spec."""
    grid: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    wait: bool = False
    parsable: bool = False
    hold: bool = False
    chdir: str | None = None
    notes: list[str] = field(default_factory=list)
    """What was left out and why."""


def parse_batch_script(
    text: str, options: Sequence[str], settings: Mapping[str, Any], source: str = "script"
) -> BatchScript:
    """A script and the options before it on the command line (which win, as with sbatch).

    Args:
        text: the script.
        options: sbatch options such as ``--wait`` or ``-J name``.
        settings: the group ``slurm`` of the settings; options that belong to allocations must agree with it.

    Raises:
        SpecError: an unknown or misplaced directive, or a body line that is no set-up; with its line number.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise SpecError(f"{source}: the first line must begin with '#!', as sbatch demands")
    script = BatchScript()
    given: dict[str, str] = {}
    own: dict[str, Any] = {}
    body_from = 0
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        directive = DIRECTIVE.match(line)
        if directive is not None:
            if body_from:
                raise SpecError(
                    f"{where}: sbatch ignores directives after the first command (line {body_from}); move it up"
                )
            pairs = _pairs(_words(directive.group(2), where), where, of_sbatch=directive.group(1) == "SBATCH")
            if directive.group(1) == "SBATCH":
                given.update(pairs)
            else:
                _take_own(own, pairs, where)
        elif line.strip() and not line.lstrip().startswith("#"):
            body_from = body_from or number
            script.setup.append(_setup_line(line, where))
    given.update(_pairs(list(options), "command line", of_sbatch=True))
    _apply(script, given, settings, source)
    script.grid = list(own.pop("grid", []))
    script.spec.update(own)
    if script.setup or "setup" in own:
        script.spec["setup"] = [*own.get("setup", []), *script.setup]
    return script


def _words(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise SpecError(f"{where}: {error}") from None


def _pairs(words: list[str], where: str, *, of_sbatch: bool) -> list[tuple[str, str]]:
    """(long name, value) of options as sbatch reads them."""
    pairs: list[tuple[str, str]] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        short = re.match(r"-([A-Za-z])(.*)$", word)
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
        elif of_sbatch and short is not None and short.group(1) in LONG:
            name, value = LONG[short.group(1)], short.group(2).removeprefix("=")
            equals = "=" if value else ""
        else:
            raise SpecError(f"{where}: {word!r} is not an option that is understood here")
        if of_sbatch and not equals and name not in {*WITH_VALUE, *WITHOUT_VALUE}:
            equals = "="  # refused later, by its name; whether it takes a value does not matter
        if not equals and name not in WITHOUT_VALUE:
            if not queue or (of_sbatch and queue[0].startswith("--")) or not of_sbatch:
                raise SpecError(f"{where}: --{name} needs a value: --{name}=VALUE")
            value = queue.pop(0)
        pairs.append((name, value))
    return pairs


def _take_own(own: dict[str, Any], pairs: Sequence[tuple[str, str]], where: str) -> None:
    for name, value in pairs:
        key = name.replace("-", "_")
        if key in {"grid", "setup", "trust_remote_code"}:
            own.setdefault(key, []).append(value)
        elif key in own:
            raise SpecError(f"{where}: --{name} is given twice")
        else:
            own[key] = value


def _setup_line(line: str, where: str) -> str:
    stripped = line.strip()
    # What stands in single quotes is only text, unless double quotes around them say otherwise.
    plain = stripped if '"' in stripped else re.sub(r"'[^']*'", "", stripped)
    if HOOK.match(stripped):
        return stripped
    if not SETUP.match(stripped) or re.search(r"[;&|<>`\\]|\$\(", plain):
        raise SpecError(
            f"{where}: {stripped!r} is not a set-up line. The body may only prepare the environment (module, ml, "
            "source, conda activate, export, unset, umask, ulimit, set), one plain command a line; prompttuner does "
            "the tuning, which '#PROMPTTUNER --model=...' and the like describe"
        )
    return stripped


def _apply(script: BatchScript, given: Mapping[str, str], settings: Mapping[str, Any], source: str) -> None:
    for name, value in given.items():
        if name in {"wait", "parsable", "hold"}:
            setattr(script, name, True)
        elif name == "chdir":
            script.chdir = value
        elif name == "job-name":
            script.spec["name"] = value
        elif name in GPU_OPTIONS:
            _gpus(script, name, value, source)
        elif name in ALONE:
            if value != "1":
                text = f"--{name}={value} cannot be: members are one GPU each, anywhere; use '#PROMPTTUNER --max-gpus'"
                raise SpecError(f"{source}: {text}")
        elif name in SETTINGS:
            _agrees(name, value, settings, source)
        elif name in NOTED:
            script.notes.append(f"--{name} is left out: {NOTED[name]}")
        elif name not in HARMLESS:
            advice = ADVICE.get(name, "it would be ignored; remove it, or put it into the settings as slurm.extra")
            raise SpecError(f"{source}: --{name} has no meaning here: {advice}")


def _gpus(script: BatchScript, name: str, value: str, source: str) -> None:
    match = GPU.match(value if value != "gpu" else "gpu:1")
    if match is None or int(match.group("count")) < 1:
        raise SpecError(f"{source}: --{name}={value} is not a number of GPUs (TYPE:NUMBER or NUMBER)")
    script.spec["max_gpus"] = int(match.group("count"))
    if match.group("kind"):
        script.spec["gpu_type"] = match.group("kind")


def _agrees(name: str, value: str, settings: Mapping[str, Any], source: str) -> None:
    key = SETTINGS[name]
    there = settings.get(key)
    if str(there) != value:
        raise SpecError(
            f"{source}: --{name}={value} differs from the settings ({there or 'not set'}): allocations are shared by "
            f"jobs; set slurm.{key} = {value!r}, or leave the line out"
        )
