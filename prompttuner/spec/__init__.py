"""What a user asks for: the job spec, its parts, and the checks that need neither torch nor a database."""

from __future__ import annotations

from prompttuner.spec.job import JobSpec
from prompttuner.spec.load import load_spec, load_values, make_spec
from prompttuner.spec.resolve import check_data, resolve
from prompttuner.spec.target import Target

__all__ = ["JobSpec", "Target", "check_data", "load_spec", "load_values", "make_spec", "resolve"]
