"""A paced model: a folder that stands in for an LLM whose weights are not here; loading it sleeps by the profile.

For replays: paced jobs tune nothing, so their agents need no weights, and neither transformers nor its imports. What is
real in such a start-up (Slurm, agent, zygote, torch) counts as part of the stated time, so that on a host that starts
several agents on few cores each still takes what it would on nodes of its own.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prompttuner.errors import ModelError
from prompttuner.files import make_private_dir, write_json

if TYPE_CHECKING:
    import torch

__all__ = ["PacedModel", "read_paced_model", "write_paced_model"]

FILE = "paced.json"


@dataclass(frozen=True, slots=True)
class PacedModel:
    """Takes the place of a ``LoadedModel`` where only paced jobs run."""

    name: str
    start_s: float
    """From the agent's start to warm."""
    switch_s: float
    """From a warm agent's order to change its LLM to warm again."""
    bytes: int = 0

    @property
    def device(self) -> torch.device:
        """The CPU: nothing is computed."""
        import torch

        return torch.device("cpu")

    def to(self, _device: object) -> PacedModel:
        """Nothing to move."""
        return self

    def load_left_s(self, first: bool) -> float:
        """Seconds that a load which begins now still has to sleep; ``first``: this process has loaded nothing yet."""
        return max(0.0, self.start_s - _parents_age_s()) if first else self.switch_s


def write_paced_model(folder: Path, start_s: float, switch_s: float) -> Path:
    """Make ``folder`` a paced model; what jobs name as their model."""
    make_private_dir(folder)
    write_json(folder / FILE, {"paced": True, "start_s": start_s, "switch_s": switch_s})
    return folder


def read_paced_model(name: str) -> PacedModel | None:
    """The paced model that this folder is; None where it is none.

    Raises:
        ModelError: it says so, but its times cannot be read.
    """
    path = Path(name) / FILE
    try:
        value = json.loads(path.read_text())
        model = PacedModel(name, float(value["start_s"]), float(value["switch_s"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no paced model: {error!r}") from error
    if not all(0 <= seconds < math.inf for seconds in (model.start_s, model.switch_s)):
        raise ModelError(f"{path}: times must be 0 or more")
    return model


def _parents_age_s() -> float:
    """Seconds since this process's parent, the agent, began."""
    fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
