"""Leave-one-out trials in idle time: had the job of an entry come now, how would the other entries have served it?

A trial scores the other entries on samples of that job's data (see ``tasks`` for what is known of it) and tunes the
best of them, and a vocabulary sample, for a few steps. It is logged as it goes on, and may be cut off anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from prompttuner.bank.folder.shelf import Shelf
from prompttuner.bank.folder.tasks import Task, read_tasks
from prompttuner.bank.index.trial_log import VOCAB, Trial, read_trials
from prompttuner.bank.lookup.candidates import Candidates, gather
from prompttuner.bank.lookup.race import RaceSettings, Runner
from prompttuner.bank.lookup.samples import pick_samples, room_for_prompt
from prompttuner.bank.lookup.scoring import Scorer
from prompttuner.bank.lookup.strategies import DEFAULT_STRATEGY, choose
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.rate import job_rate
from prompttuner.errors import PromptTunerError
from prompttuner.spec.data import read_samples

__all__ = ["run_trials"]

log = logging.getLogger(__name__)

Stop = Callable[[], bool]

DATA = 256
"""Training samples that a trial reads, the first of the file: it must not parse gigabytes between two looks."""
SAMPLES = 32
"""Of these, samples that candidates are scored on."""
SAVED_EVERY_S = 2.0
"""Whoever is killed loses at most so much work."""
BATCH = 8
"""Candidates scored between two questions whether to stop."""
GROWN = 2.0
"""A task is tried again when the bank has grown by this factor."""
RACE = RaceSettings()


def run_trials(shelf: Shelf, loaded: LoadedModel, should_stop: Stop) -> int:
    """Try all tasks of this shelf that were not tried yet; number of trials that were finished.

    Only a private bank has tasks. ``should_stop`` is asked before every batch of scores and every tuning step. A task
    that cannot be tried (its data does not fit, memory does not suffice) is left alone until the bank has grown.
    """
    tasks, done = read_tasks(shelf), read_trials(shelf)
    entries = len(shelf.ids())
    finished = 0
    for entry_id, task in tasks.items():
        if should_stop():
            break
        trial = done.get(entry_id)
        if trial is None or entries >= GROWN * max(1, trial.entries):
            trial = Trial(entry_id, task.job, entries)
        if trial.complete or not task.unchanged:
            continue
        same = {other.entry for other in tasks.values() if other.spec["train_sha256"] == task.spec["train_sha256"]}
        try:
            finished += _Running(shelf, loaded, task, trial, should_stop).run(same)
        except (PromptTunerError, RuntimeError) as error:
            log.warning("no trial of the task of %s: %s", entry_id[:12], error)
            trial.complete = True
            trial.save(shelf)
    return finished


class _Running:
    """One trial and its log."""

    def __init__(self, shelf: Shelf, loaded: LoadedModel, task: Task, trial: Trial, should_stop: Stop) -> None:
        self.shelf, self.loaded, self.task, self.trial, self.should_stop = shelf, loaded, task, trial, should_stop
        self._model = PrefixModel(loaded)
        self._saved = time.monotonic()

    def run(self, without: set[str]) -> bool:
        """Go on until the trial is complete (True) or has to stop (False)."""
        spec = {**self.task.spec, "initial_prompt": "vocab"}
        samples, batches = pick_samples(
            spec, self.loaded, read_samples(spec["train"], DATA), int(spec["seed"]), SAMPLES, sum(RACE.steps)
        )
        banks = [self.shelf.bank.root]
        found = gather(
            self.loaded,
            self.shelf.model,
            banks,
            spec["prompt_length"],
            stop=self.should_stop,
            without=without,
            longest=room_for_prompt(self.loaded, samples, batches),
        )
        baseline = found.add_own(VOCAB, initial_prompt(spec, self.loaded).tensor)
        score = self._remembered(found, Scorer(self.loaded, samples, found.prompt))
        choice = choose(DEFAULT_STRATEGY, found.layers, score, len(samples), stop=self.should_stop, batch=BATCH)
        self._save()
        if choice.cut_short:
            return False
        entries = [c for c in choice.ranking if c != baseline][: RACE.finalists - 1]
        for candidate in [*entries, baseline]:
            if found.names[candidate] not in self.trial.after and not self._tune(found, candidate, batches, samples):
                return False
        self.trial.complete = True
        self._save()
        return True

    def _remembered(
        self, found: Candidates, scorer: Scorer
    ) -> Callable[[Sequence[int], Sequence[int]], NDArray[np.float64]]:
        """Scores that are taken from the log where it has them."""
        losses = self.trial.losses

        def score(candidates: Sequence[int], samples: Sequence[int]) -> NDArray[np.float64]:
            first, end = samples[0], samples[-1] + 1
            missing = [c for c in candidates if len(losses.get(found.names[c], ())) < end]
            if missing:
                for candidate, row in zip(missing, scorer(missing, samples), strict=True):
                    known = losses.get(found.names[candidate], [])
                    losses[found.names[candidate]] = [*known[:first], *row.tolist()]
                self._save(SAVED_EVERY_S)
            return np.array([losses[found.names[c]][first:end] for c in candidates])

        return score

    def _tune(
        self, found: Candidates, candidate: int, batches: Sequence[Sequence[Encoded]], samples: Sequence[Encoded]
    ) -> bool:
        """Tune one candidate for as many steps as a race has, and log what came of it; False if cut off."""
        prompt = found.prompt(candidate)
        if prompt is None:
            return True
        runner = Runner(self._model, prompt, job_rate(self.task.spec, self.loaded))
        scored = samples[: RACE.samples]
        tokens = sum(len(sample.target) for sample in scored)
        lowest, first = float("inf"), 0
        for steps in RACE.steps:
            for batch in batches[first : first + steps]:
                if self.should_stop():
                    return False
                runner.run([batch])
            lowest = min(lowest, runner.loss(scored) / tokens)
            first += steps
        self.trial.after[found.names[candidate]] = lowest
        self._save()
        return True

    def _save(self, every_s: float = 0.0) -> None:
        if time.monotonic() - self._saved >= every_s:
            self.trial.save(self.shelf)
            self._saved = time.monotonic()
