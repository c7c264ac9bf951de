"""Policies by name."""

from __future__ import annotations

from importlib import import_module

from prompttuner.errors import ConfigError
from prompttuner.policy.plan import Policy

__all__ = ["POLICIES", "get"]

POLICIES = {
    "edf": ("prompttuner.policy.edf", "Edf"),
    "elasticflow": ("prompttuner.policy.elasticflow", "ElasticFlow"),
    "elasticflow-fixed": ("prompttuner.policy.elasticflow", "ElasticFlowFixed"),
    "infless": ("prompttuner.policy.infless", "Infless"),
    "sbatch": ("prompttuner.policy.sbatch", "Sbatch"),
    "prompttuner": ("prompttuner.policy.prompttuner", "PromptTuner"),
}
"""Name -> (module, class). Modules are imported when asked for."""


def get(name: str, **switches: object) -> Policy:
    """The policy of this name, with its switches set. Raises ConfigError for an unknown name or switch."""
    if name not in POLICIES:
        raise ConfigError(f"there is no policy '{name}': choose one of {', '.join(sorted(POLICIES))}")
    module, kind = POLICIES[name]
    maker = getattr(import_module(module), kind)
    try:
        policy: Policy = maker(**switches)
    except TypeError as error:
        known = ", ".join(f for f in maker.__dataclass_fields__ if f != "name")
        raise ConfigError(f"policy '{name}' has no such switch ({error}); it has: {known}") from error
    return policy
