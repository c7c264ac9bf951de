"""The job spec: what a user may say about a job, validated."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prompttuner.protocol.initial import InitialPrompt
from prompttuner.protocol.spec import MAX_PRIORITY
from prompttuner.spec.target import TargetField
from prompttuner.spec.template import DEFAULT_TEMPLATE, check_template
from prompttuner.spec.text import is_text
from prompttuner.spec.when import parse_deadline

__all__ = ["ALIASES", "DEFAULT_MAX_GPUS", "DEFAULT_PROMPT_LENGTH", "MAX_PRIORITY", "JobSpec", "nearest_key"]

ALIASES = {
    "lr": "learning_rate",
    "batch": "batch_size",
    "bs": "batch_size",
    "length": "prompt_length",
    "iterations": "max_iterations",
    "init": "initial_prompt",
}
"""Short names that flags, files and grids may use as well."""

DEFAULT_PROMPT_LENGTH = 20
"""Virtual tokens; a ``text:`` or file prompt, and one that ``auto`` finds, sets its own length instead."""

DEFAULT_MAX_GPUS = 4
"""Lowered to the batch size where that is smaller: no member may be without a sample."""

Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


def nearest_key(key: str, known: list[str]) -> str | None:
    """The known key that ``key`` most probably means, if any."""
    if key in ALIASES and ALIASES[key] in known:
        return ALIASES[key]
    words = [*known, *(alias for alias, name in ALIASES.items() if name in known)]
    near = get_close_matches(key.lower().replace("-", "_"), words, n=1, cutoff=0.55)
    return ALIASES.get(near[0], near[0]) if near else None


class JobSpec(BaseModel):
    """One prompt-tuning job. Paths are relative to the file that holds them, or to the working folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, description="hub id, local folder, or 'small' (the shipped model)")
    train: Path = Field(description="training data: JSONL with input and target")
    eval: Path = Field(description="evaluation data: JSONL with input and target")
    template: str = Field(default=DEFAULT_TEMPLATE, description="text with {input} and {target}, or 'chat'")
    target: TargetField = Field(description="loss<=x, exact_match>=x or rougeL>=x")
    deadline: str | None = Field(default=None, description="duration (1h30m) or ISO time with zone; none: best effort")
    max_iterations: int = Field(default=1000, ge=1, le=10_000_000)
    prompt_length: int | None = Field(
        default=None, ge=1, le=4096, description="virtual tokens; default 20, or the found, text or file prompt's own"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=100, description="of AdamW; auto (the default): by the scale of the model's embeddings"
    )
    batch_size: int = Field(
        default=16, ge=1, le=65536, description="samples of one iteration over all members together"
    )
    eval_every: int = Field(default=20, ge=1, description="iterations between evaluations")
    eval_samples: int | None = Field(
        default=None, ge=1, description="evaluate on the first n samples only; none: on all"
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    min_gpus: int = Field(default=1, ge=1, le=1024)
    max_gpus: int = Field(default=DEFAULT_MAX_GPUS, ge=1, le=1024)
    initial_prompt: str = Field(
        default="auto", description="auto, bank, bank:ENTRY, random, vocab, text:..., or a .safetensors file"
    )
    name: str | None = Field(default=None, max_length=100)
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="higher goes first among equals")
    on_miss: Literal["continue", "stop"] = Field(default="continue", description="what to do after a missed deadline")
    bucketing: bool = Field(default=False, description="batches of samples of similar length")
    trust_remote_code: Names = Field(default=(), description="models (by name) whose own Python code may run")
    allow_unused_weights: bool = Field(default=False, description="tune although stored weights have no place")
    allow_unknown_tokens: bool = Field(default=False, description="tune although targets hold unknown tokens")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gpu_type: str | None = Field(default=None, description="GPU type as Slurm names it; none: any one type")
    setup: Names = Field(default=(), description="shell lines before the agent: module, conda, export")
    note: str = Field(default="", max_length=10_000, description="what the task is, in words (kept with the prompt)")

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = list(cls.model_fields)
        renamed: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name not in known:
                near = nearest_key(str(key), known)
                raise ValueError(f"unknown key {key!r}" + (f"; did you mean {near!r}?" if near else _listing(known)))
            if name in renamed:
                raise ValueError(f"{name!r} is given twice ({key!r} means the same)")
            parts = value if isinstance(value, list | tuple) else [value]
            if not all(is_text(part) for part in parts if isinstance(part, str)):
                raise ValueError(f"{name!r} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
            renamed[name] = value
        if "max_gpus" not in renamed:
            batch, least = _as_int(renamed.get("batch_size"), 16), _as_int(renamed.get("min_gpus"), 1)
            renamed["max_gpus"] = max(1, least, min(DEFAULT_MAX_GPUS, batch))
        return renamed

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _learning_rate(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().lower() == "auto":
            return None
        return value

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return check_template(value)

    @field_validator("deadline", mode="before")
    @classmethod
    def _deadline(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() in {"", "none"}):
            return None
        text = value.isoformat() if hasattr(value, "isoformat") else value  # TOML has times of its own
        if not isinstance(text, str):
            raise ValueError(f"deadline {value!r} has no unit; write 30m, 1h30m, 45s or a time with its zone")
        parse_deadline(text, float("-inf"))
        return text.strip()

    @field_validator("initial_prompt")
    @classmethod
    def _initial_prompt(cls, value: str) -> str:
        InitialPrompt.parse(value)
        return value

    @field_validator("name", "gpu_type")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.:=+@ -]+", value):
            raise ValueError(f"{value!r} may hold letters, digits, blanks and . _ : = + @ - only")
        return value

    @field_validator("setup")
    @classmethod
    def _setup(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if "\n" in line or "\0" in line:
                raise ValueError(f"setup line {line!r} must be a single line")
        return value

    @model_validator(mode="after")
    def _gpus(self) -> Self:
        if self.min_gpus > self.max_gpus:
            raise ValueError(f"min_gpus ({self.min_gpus}) is above max_gpus ({self.max_gpus})")
        if self.max_gpus > self.batch_size:
            raise ValueError(
                f"max_gpus ({self.max_gpus}) is above batch_size ({self.batch_size}): a member would have no sample; "
                f"raise batch_size or lower max_gpus"
            )
        return self


def _as_int(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _listing(known: list[str]) -> str:
    return f"; the keys are: {', '.join(known)}"
