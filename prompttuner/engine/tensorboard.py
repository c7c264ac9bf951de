"""A result's history for TensorBoard: what ``prompttuner result JOB --tensorboard FOLDER`` writes."""

from __future__ import annotations

import csv
from pathlib import Path

from prompttuner.errors import NotFound, PromptTunerError
from prompttuner.files import read_json

__all__ = ["write_tensorboard"]


def write_tensorboard(result: Path, logs: Path) -> int:
    """Write the history of a result folder as TensorBoard events into ``logs``; returns the number of evaluations.

    Raises:
        NotFound: ``result`` is no result folder.
        PromptTunerError: TensorBoard is not installed.
    """
    report = read_json(result / "result.json")
    if report is None:
        raise NotFound(f"{result} is no result folder: it holds no result.json")
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise PromptTunerError("TensorBoard is not installed; pip install 'prompttuner[tensorboard]'") from None
    names = {"loss": "eval/loss", "train_loss": "train/loss"}
    if (metric := report["spec"]["target"]["metric"]) != "loss":
        names["metric"] = f"eval/{metric}"
    with (result / "history.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    with SummaryWriter(str(logs)) as writer:
        for row in rows:
            for column, name in names.items():
                if row[column]:  # no training comes before the first evaluation
                    writer.add_scalar(name, float(row[column]), int(row["step"]))
    return len(rows)
