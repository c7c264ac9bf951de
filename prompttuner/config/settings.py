"""Every setting with its default and its limits. Durations are seconds; text such as ``10m`` is understood too."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from prompttuner.errors import ConfigError
from prompttuner.files import make_private_dir
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.spec.when import parse_duration

__all__ = ["ENV_PREFIX", "FORMER_NAMES", "ElasticOptions", "LocalSettings", "Seconds", "Settings", "SlurmSettings"]

ENV_PREFIX = "PROMPTTUNER_"


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        seconds = parse_duration(value)
        return value if seconds is None else seconds
    return value


Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds)]
Folder: TypeAlias = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser().absolute())]
Lines: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(lambda v: v.splitlines() if isinstance(v, str) else v)]


class LocalSettings(BaseModel):
    """Allocations as processes on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int = Field(
        default=2, ge=1, le=1024, description="allocations at a time; on a machine with GPUs, how many to use"
    )
    walltime_s: Seconds | None = Field(default=None, gt=0, description="end of an allocation; none: no end")
    queue_s: Seconds = Field(default=0.0, ge=0, description="expected wait for a slot, for predictions")


_WORD = r"[\w.,:&|()\[\]*=+@/-]+"


def _plain_word(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(_WORD, value):
        raise ValueError(f"{value!r} holds blanks or characters that Slurm does not take")
    return value


def _name(value: str | None) -> str | None:
    """Accounts and the like may have blanks within them (``my lab``): all that reaches sbatch is quoted."""
    if value is not None and not re.fullmatch(f"{_WORD}( +{_WORD})*", value):
        raise ValueError(f"{value!r} holds characters that Slurm does not take, or blanks at its ends")
    return value


class SlurmSettings(BaseModel):
    """Allocations as Slurm jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    account: str | None = Field(default=None, description="account to charge")
    qos: str | None = Field(default=None, description="quality of service")
    partition: str | None = Field(default=None, description="none: the site's default")
    constraint: str | None = Field(default=None, description="node features")
    reservation: str | None = Field(default=None, description="reservation to run in")
    gpu_type: str | None = Field(default=None, description="GPU type as in GRES (gpu:TYPE:1); none: any")
    gpus_per_agent: int = Field(default=1, ge=1, le=64, description="GPUs of one allocation")
    gpu_directive: Literal["gres", "gpus-per-node", "none"] = Field(
        default="gres", description="how GPUs are asked for"
    )
    cpus_per_agent: int | None = Field(
        default=None, ge=1, description="CPU cores of one allocation; none: the partition decides"
    )
    mem: str | None = Field(default=None, description="memory of an allocation as sbatch takes it, such as 32G")
    walltime_s: Seconds | None = Field(
        default=None, gt=0, description="of an allocation; none: the partition's limit, or 4 h"
    )
    mail_user: str | None = Field(default=None, description="address for Slurm's own mails")
    mail_type: str | None = Field(default=None, description="which of them, such as FAIL")
    signal: str = Field(
        default="USR1", pattern=r"^(USR1|USR2|TERM|INT|HUP)$", description="sent before the walltime ends"
    )
    signal_before_s: int = Field(default=90, ge=10, le=3600, description="how long before")
    setup: Lines = Field(default=(), description="shell lines before an agent: module, conda, export")
    launcher: str | None = Field(default=None, description="command before python, such as srun --container-image=...")
    python: str | None = Field(
        default=None, description="python in an allocation, such as the one of a container; none: this one"
    )
    offline: bool = Field(default=True, description="compute nodes have no internet: HF_HUB_OFFLINE=1 in allocations")
    templates: Folder | None = Field(default=None, description="folder of own templates, looked into first")
    extra: dict[str, str] = Field(default_factory=dict, description="further sbatch parameters by name")
    call_timeout_s: Seconds = Field(default=30.0, gt=0, description="bound of one Slurm command")
    controller_partition: str | None = Field(
        default=None, description="of the controller's own job; none: the site's default partition"
    )
    controller_walltime_s: Seconds = Field(
        default=12 * 3600.0, ge=600, description="of the controller's own job; a successor takes over"
    )
    accounting: Literal["auto", "yes", "no"] = Field(default="auto", description="whether sacct may be asked")

    @field_validator("account", "qos", "partition", "reservation", "controller_partition")
    @classmethod
    def _names(cls, value: str | None) -> str | None:
        return _name(value)

    @field_validator("constraint", "gpu_type", "mem")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        return _plain_word(value)


_LEASES = ElasticSettings()


class ElasticOptions(BaseModel):
    """Of the leases of all jobs; what they mean and their defaults are in ``prompttuner.protocol.elastic``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss_timeout_s: Seconds = Field(
        default=_LEASES.loss_timeout_s, gt=0, description="a member that keeps the others waiting for so long is lost"
    )
    grace_s: Seconds = Field(
        default=_LEASES.grace_s, ge=1, description="after a loss: a member without a sign of life for so long is dead"
    )
    join_timeout_s: Seconds = Field(
        default=_LEASES.join_timeout_s, gt=0, description="a newcomer that is not ready for so long is left out"
    )
    checkpoint_s: Seconds = Field(default=_LEASES.checkpoint_s, gt=0, description="a checkpoint at least this often")
    checkpoint_steps: int = Field(default=_LEASES.checkpoint_steps, ge=1, description="and after so many iterations")
    way: Literal["in_place", "restart"] = Field(
        default=_LEASES.way, description="who stays keeps process and model, or torchelastic starts workers anew"
    )
    backend: Literal["gloo", "nccl", "auto"] = Field(
        default=_LEASES.backend, description="how members add up gradients; nccl: each on a GPU that all can reach"
    )
    interface: str | None = Field(
        default=_LEASES.interface, description="network interface of agents and members, such as ib0; none: find it"
    )
    threads: int = Field(default=_LEASES.threads, ge=1, le=256, description="CPU threads of a worker")

    @field_validator("interface")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        return _plain_word(value)


FORMER_NAMES = {
    "loss_timeout_s": "elastic.loss_timeout_s",
    "checkpoint_every_s": "elastic.checkpoint_s",
    "checkpoint_every_steps": "elastic.checkpoint_steps",
    "threads": "elastic.threads",
    "slurm.interface": "elastic.interface",
}
"""Settings of the release before, which files, variables and flags may name for one more."""


class Settings(BaseSettings):
    """All settings. Made by ``load_settings``, which knows the layers; constructing it directly uses defaults only."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", validate_default=True
    )

    home: Folder = Field(default=Path("~/.prompttuner"), description="where everything is kept unless said otherwise")
    backend: Literal["local", "slurm"] = Field(
        default="local", description="where allocations come from: processes of this machine, or Slurm"
    )
    database: str | None = Field(default=None, description="SQLAlchemy URL; none: SQLite in home/state.db")
    spool: Folder | None = Field(
        None, description="on a file system that login and compute nodes share; none: home/spool"
    )
    bank_dirs: tuple[Folder, ...] = Field(
        default=(), description="Prompt Banks to look into besides the own one, home/bank"
    )
    checks_dir: Folder | None = Field(
        None, description="where checks of models and data at submit are remembered; none: home/checks"
    )
    policy: Literal["prompttuner", "edf", "elasticflow", "elasticflow-fixed", "infless", "sbatch"] = Field(
        default="prompttuner", description="scheduling policy"
    )
    pool: Literal["warm", "none"] = Field(default="warm", description="none: agents end with their job")
    prewarm: bool = Field(
        default=True, description="agents may be started before the jobs that regular past ones foretell (pool = warm)"
    )

    tick_s: Seconds = Field(default=1.0, gt=0, le=600, description="period of `prompttuner run`")
    cron_tick_s: Seconds = Field(default=60.0, gt=0, le=3600, description="period of cron ticks")
    squeue_min_s: Seconds = Field(default=10.0, ge=0, description="least time between two questions to Slurm")
    heartbeat_s: Seconds = Field(default=5.0, gt=0, description="how often agents and controller show that they live")
    poll_s: Seconds = Field(default=0.2, gt=0, le=60, description="how often agents look at their order")
    suspect_s: Seconds = Field(default=60.0, gt=0, description="silence after which an agent is suspect (never: lost)")
    owner_expiry_s: Seconds = Field(
        default=30.0, gt=0, description="silence after which another controller may take over"
    )
    idle_limit_s: Seconds = Field(
        default=600.0, gt=0, lt=3600, description="an agent without a job ends itself after it"
    )

    max_gpus: int | None = Field(default=None, ge=1, description="GPUs held at a time; none: what the site allows")
    max_jobs: int | None = Field(default=None, ge=1, description="allocations at a time, queued ones included")
    max_submissions_per_minute: int = Field(default=20, ge=1, le=600, description="allocations asked for in a minute")
    max_gpu_hours: float | None = Field(default=None, gt=0, description="budget: no growth beyond it")

    webhook: str | None = Field(
        default=None, description="URL that gets a JSON POST on a missed or endangered deadline"
    )
    command_hook: str | None = Field(default=None, description="program that gets the same JSON on its standard input")
    mail: str | None = Field(default=None, description="address that gets mail on a missed or endangered deadline")
    metrics_file: Folder | None = Field(default=None, description="Prometheus text file, written each tick")
    metrics_port: int | None = Field(default=None, ge=1024, le=65535, description="Prometheus over HTTP, loopback only")
    keep_days: float = Field(
        default=30.0, gt=0, description="ended jobs' spool folders and old events are removed after it"
    )
    keep_mb: float = Field(
        default=2000.0, gt=0, description="spool folders of ended jobs and agents are removed above it, oldest first"
    )

    local: LocalSettings = Field(default_factory=LocalSettings)
    slurm: SlurmSettings = Field(default_factory=SlurmSettings)
    elastic: ElasticOptions = Field(default_factory=ElasticOptions)

    @model_validator(mode="before")
    @classmethod
    def _take_former_names(cls, values: Any) -> Any:
        """Names of the release before, for those who build settings in Python."""
        if not isinstance(values, dict) or isinstance(values.get("elastic"), ElasticOptions):
            return values
        found, elastic = dict(values), dict(values.get("elastic") or {})
        slurm = dict(found["slurm"]) if isinstance(found.get("slurm"), dict) else {}
        if "interface" in slurm:
            elastic.setdefault("interface", slurm.pop("interface"))
            found["slurm"] = slurm
        for old, new in FORMER_NAMES.items():
            if old in found:
                elastic.setdefault(new.partition(".")[2], found.pop(old))
        return {**found, "elastic": elastic}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: ``layers.py`` reads the sources, as it must know the origin of each value."""
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.suspect_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"suspect_s ({self.suspect_s:g}) must be at least three heartbeats (heartbeat_s is "
                f"{self.heartbeat_s:g}): raise it, or healthy agents will be suspected"
            )
        if self.owner_expiry_s < 3 * self.tick_s:
            raise ValueError(
                f"owner_expiry_s ({self.owner_expiry_s:g}) must be at least three ticks (tick_s is {self.tick_s:g})"
            )
        return self

    def of_leases(self) -> ElasticSettings:
        """The elastic settings whole, with what the other settings say about leases."""
        chosen = ElasticSettings(**self.elastic.model_dump())
        interface = "lo" if self.backend == "local" else chosen.interface
        banks = tuple(str(path) for path in self.all_bank_dirs)
        return replace(chosen, poll_s=self.poll_s, interface=interface, bank_dirs=banks)

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the state."""
        return self.database or f"sqlite:///{self.home / 'state.db'}"

    @property
    def spool_dir(self) -> Path:
        """The spool: the setting, or a folder below home."""
        return self.spool or self.home / "spool"

    @property
    def checks(self) -> Path:
        """Where good answers of `prompttuner.spec.preflight` are kept."""
        return self.checks_dir or self.home / "checks"

    @property
    def bank_dir(self) -> Path:
        """The own Prompt Bank."""
        return self.home / "bank"

    @property
    def all_bank_dirs(self) -> tuple[Path, ...]:
        """The own bank first, then those shared with others."""
        return (self.bank_dir, *(folder for folder in self.bank_dirs if folder != self.bank_dir))

    @property
    def logs_dir(self) -> Path:
        """Folder of logs."""
        return self.home / "logs"

    def make_home(self) -> Path:
        """Create home (0700) if it is missing, and the folder of logs, where cron's line appends to a file.

        Raises:
            ConfigError: it cannot be made there.
            OSError: the disk is full.
        """
        try:
            make_private_dir(self.logs_dir)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise ConfigError(
                f"the home folder {self.home} cannot be used: {error.strerror}; name another with --home or "
                "PROMPTTUNER_HOME"
            ) from None
        return self.home
