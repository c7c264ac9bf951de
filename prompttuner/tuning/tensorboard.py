"""Show a result's history in TensorBoard: ``python -m prompttuner.tuning.tensorboard RESULT_FOLDER LOG_FOLDER``."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from prompttuner.errors import NotFound, PromptTunerError
from prompttuner.files import read_json

__all__ = ["main", "write_tensorboard"]


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


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="a job's result folder")
    parser.add_argument("logs", type=Path, help="folder for TensorBoard, which `tensorboard --logdir` then shows")
    options = parser.parse_args()
    try:
        print(f"{write_tensorboard(options.result, options.logs)} evaluations written to {options.logs}")
    except PromptTunerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
