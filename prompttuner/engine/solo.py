"""One member runs one job from beginning to end in this process.

To use it: ``python -m prompttuner.engine.solo SPEC.json FOLDER``.

What tests, examples and a look at a job by hand need; jobs under a controller run in leases.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prompttuner.engine.checkpoint import EVERY_S, EVERY_STEPS, CheckpointClock, load_checkpoint, save_checkpoint
from prompttuner.engine.initial import Lookup, initial_prompt
from prompttuner.engine.llm.loading import check_usable
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.result import write_result
from prompttuner.engine.tuner import StepOutcome, Tuner, check_survival, read_data
from prompttuner.errors import PromptTunerError

__all__ = ["main", "run_solo"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def run_solo(
    spec: Mapping[str, Any],
    folder: Path,
    *,
    loaded: LoadedModel | None = None,
    lookup: Lookup | None = None,
    on_step: Callable[[StepOutcome], None] | None = None,
) -> Tuner:
    """Tune until the target is reached or all iterations are done; goes on from a checkpoint in ``folder``.

    Writes checkpoints into ``folder`` and, at the end, ``folder/result/``. SIGTERM, SIGUSR1 and SIGUSR2 save a
    checkpoint and return early (``outcome`` then is ``stopped``, and there is no result yet).

    Args:
        spec: the resolved spec; ``checkpoint_every_steps`` and ``checkpoint_every_s`` are taken from it where given.
        folder: belongs to this run alone.
        loaded: a model that is loaded already.
        lookup: resolves ``initial_prompt = "auto"``.
        on_step: called after every iteration.

    Raises:
        PromptTunerError: bad spec, data, model or checkpoint; full disk.
    """
    if loaded is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        name = spec.get("model_name")
        loaded = load_model(
            spec["model"], spec.get("dtype", "auto"), spec.get("trust_remote_code", ()), device=device, name=name
        )
    check_usable(loaded, bool(spec.get("allow_unused_weights")))
    data = read_data(spec)
    check_survival(data, loaded, spec)
    tuner = Tuner(loaded, spec, data, initial_prompt(spec, loaded, lookup))
    if (state := load_checkpoint(folder)) is not None:
        tuner.load_state(state)
    clock = CheckpointClock(
        spec.get("checkpoint_every_steps") or EVERY_STEPS, spec.get("checkpoint_every_s") or EVERY_S, tuner.step_index
    )
    with _stop_asked() as asked:
        while not tuner.finished and not asked:
            if tuner.evaluation_due:
                tuner.evaluate()
                continue
            outcome = tuner.train_step()
            if on_step is not None:
                on_step(outcome)
            if clock.due(tuner.step_index):
                save_checkpoint(folder, tuner.state())
                clock.saved(tuner.step_index)
    save_checkpoint(folder, tuner.state())
    if tuner.finished:
        write_result(folder / "result", tuner)
    return tuner


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path, help="a resolved spec, as JSON")
    parser.add_argument("folder", type=Path, help="for checkpoints and the result")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # several threads cost more than they give for small models, and starve neighbours
    try:
        tuner = run_solo(json.loads(options.spec.read_bytes()), options.folder)
    except PromptTunerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    last = tuner.progress.last
    report = {"outcome": tuner.outcome, "step": tuner.step_index, "ita": tuner.ita, "loss": last and last.loss}
    print(json.dumps(report))
    return 0


@contextmanager
def _stop_asked() -> Iterator[list[int]]:
    """A list that is filled when a stop signal arrives."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda got, _frame: asked.append(got)) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
