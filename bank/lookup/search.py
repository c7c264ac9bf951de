"""Find the initial prompt from which a job will converge quickest, within a time budget, and say why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prompttuner.bank.lookup.candidates import Candidates, gather
from prompttuner.bank.lookup.cost import of_spec, plan_race, plan_samples
from prompttuner.bank.lookup.features import DEFAULT_RECIPE, embed_text
from prompttuner.bank.lookup.race import RaceSettings, race
from prompttuner.bank.lookup.samples import pick_samples, room_for_prompt
from prompttuner.bank.lookup.scoring import Scorer
from prompttuner.bank.lookup.strategies import DEFAULT_STRATEGY, Choice, choose, full_cost
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.rate import job_rate
from prompttuner.engine.tuner import TuningData
from prompttuner.protocol.initial import InitialPrompt

__all__ = ["DEFAULT_SAMPLES", "Found", "LookupSettings", "find_initial_prompt"]

DEFAULT_SAMPLES = 32
MIN_BUDGET_S = 0.2
"""Below this nothing sensible can be scored: the lookup is skipped."""
FEATURE_SHARE = 0.3
"""Share of the budget that may go into features which the bank lacks."""
SHOWN = 10
ASKED = 64
"""Entries that are asked how many iterations their jobs took."""
MEASURED = 4
"""Samples of the evaluation whose time is measured."""
HOPELESS = 2.0
"""A vocabulary sample whose loss is above this many times the best entry's takes no part in the race."""
EXPECTED = {"factor": 0.2, "origin": "median of benchmarks/bank.py on the small model"}


@dataclass(frozen=True, slots=True)
class LookupSettings:
    """How a lookup goes about it; the defaults are what the benchmark favours."""

    strategy: str = DEFAULT_STRATEGY
    samples: int = DEFAULT_SAMPLES
    race: RaceSettings | None = field(default_factory=RaceSettings)
    """None: no tuning steps."""
    recipe: str = DEFAULT_RECIPE
    """How features are made; those of another recipe in the index are not used."""
    without: frozenset[str] = frozenset()
    """Entries that are treated as if they did not exist (for trials)."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup found. ``prompt`` None means: start from the vocabulary, ``report["why"]`` says why."""

    prompt: Tensor | None
    """(tokens, width), float32 on the CPU."""
    source: str
    report: dict[str, Any]
    """Plain JSON values, for ``lookup.json`` and ``explain``."""


def find_initial_prompt(
    spec: Mapping[str, Any],
    loaded: LoadedModel,
    data: TuningData,
    bank_dirs: Sequence[Path],
    budget_s: float,
    seed: int,
    *,
    settings: LookupSettings | None = None,
) -> Found:
    """Look for a job's initial prompt in the banks.

    The job's own text (``text:`` prompt, or its note) and a vocabulary sample are candidates too: a bank that has
    nothing better is not used. Bad banks and entries never stop a job; the report names them.

    Args:
        spec: the resolved job spec.
        loaded: its LLM.
        data: its data; only training samples are used.
        bank_dirs: banks in order, the user's own first.
        budget_s: seconds that the deadline leaves for the lookup.
        seed: decides which samples are used.
        settings: other than the benchmark's favourites.
    """
    return _Lookup(spec, loaded, budget_s, settings or LookupSettings()).run(data, bank_dirs, seed)


class _Lookup:
    """One lookup: its clock, its candidates, and the report that grows while it goes on."""

    def __init__(self, spec: Mapping[str, Any], loaded: LoadedModel, budget_s: float, settings: LookupSettings) -> None:
        self.started = time.monotonic()
        self.spec, self.loaded, self.budget_s, self.settings = spec, loaded, budget_s, settings
        self.report: dict[str, Any] = {
            "strategy": settings.strategy,
            "budget_s": round(budget_s, 3),
            "evaluations": 0,
            "shortened": False,
        }
        self.after: dict[int, float] = {}
        """Lowest losses of the finalists in the race, best first."""
        self.tuned: dict[int, Tensor] = {}
        """The prompts that have these losses."""
        self._left = 0.0
        """Evaluations that may still be made."""

    def run(self, data: TuningData, bank_dirs: Sequence[Path], seed: int) -> Found:
        if self.budget_s < MIN_BUDGET_S:
            return self._none(f"skipped: the deadline leaves {max(0.0, self.budget_s):.2f} s for a lookup")
        model, length = str(self.spec["model"]), self.spec.get("prompt_length")
        steps = 0 if self.settings.race is None else sum(self.settings.race.steps)
        samples, batches = pick_samples(self.spec, self.loaded, data.train, seed, self.settings.samples, steps)
        found = gather(
            self.loaded,
            model,
            bank_dirs,
            length,
            stop=lambda: self._over(FEATURE_SHARE),
            recipe=self.settings.recipe,
            without=self.settings.without,
            longest=room_for_prompt(self.loaded, samples, batches),
        )
        own = _own_texts(self.spec)
        self.report |= {"entries": len(found.names), "clusters": len(found.layers.medoids), "notes": found.notes}
        if not found.names and not own:
            return self._none("the bank has no prompt for this LLM yet")
        allowed = of_spec(self.spec, map(found.entry, range(min(len(found.names), ASKED))))
        for text in own:
            found.add_own("own text", embed_text(self.loaded, text))
        baseline = found.add_own("vocab", initial_prompt({**self.spec, "initial_prompt": "vocab"}, self.loaded).tensor)
        scorer = Scorer(self.loaded, samples, found.prompt)
        self._left = min(float(allowed.evaluations), self._affordable(scorer, baseline))
        samples = samples[: plan_samples(self.settings.strategy, found.layers, len(samples), self._left)[0]]
        choice = choose(self.settings.strategy, found.layers, scorer, len(samples), stop=lambda: self._over(0.9))
        self._left -= choice.evaluations
        self.report |= {
            "samples": len(samples),
            "allowed_evaluations": allowed.evaluations,
            "expected_iterations": allowed.iterations,
            "expected_by": allowed.origin,
            "rounds": [one.to_json() for one in choice.rounds],
            "evaluations": choice.evaluations,
            "brute_force_evaluations": full_cost(found.layers, len(samples)),
            "shortened": choice.cut_short,
            "scoring_s": round(self._elapsed(), 3),
        }
        self._race(found, choice, baseline, samples, batches)
        return self._conclude(found, choice, baseline)

    def _affordable(self, scorer: Scorer, baseline: int) -> float:
        """Evaluations that the time budget pays for, by the measured time of a first few."""
        count = min(MEASURED, scorer.samples)
        scorer([baseline], range(1))  # the first call checks, and warms up
        begun = time.monotonic()
        scorer([baseline], range(count))
        each = (time.monotonic() - begun) / count
        self.report["evaluation_s"] = round(each, 4)
        return max(0.0, self.budget_s - self._elapsed()) / max(each, 1e-6)

    def _race(
        self,
        found: Candidates,
        choice: Choice,
        baseline: int,
        samples: list[Encoded],
        batches: list[list[Encoded]],
    ) -> None:
        """Tune the finalists for a few steps, as many as what is left of the allowance pays for.

        A vocabulary sample is among them unless its score is hopeless already.
        """
        settings = self.settings.race
        if settings is None:
            return
        usable = [c for c in choice.ranking if np.isfinite(choice.scores[c]) and found.prompt(c) is not None]
        entries = [c for c in usable if c != baseline]
        plain = [c for c in usable if c == baseline]
        if entries and plain and choice.scores[baseline] > HOPELESS * choice.scores[entries[0]]:
            plain = []
        field = len(entries) + len(plain)
        plan = plan_race(settings, field, len(samples), len(batches[0]), self._left) if field > 1 else None
        if plan is None or choice.cut_short:
            self.report["race"] = "left out: " + (
                "one candidate" if field < 2 else "it would cost more than it can save"
            )
            return
        runners = [*entries[: plan.finalists - len(plain)], *plain]
        result = race(
            self.loaded,
            [p for c in runners if (p := found.prompt(c)) is not None],
            [choice.scores[c] for c in runners],
            batches,
            samples,
            learning_rate=job_rate(self.spec, self.loaded),
            settings=plan,
        )
        self.after = {runners[place]: result.losses[place] for place in result.order}
        self.tuned = dict(zip(runners, result.prompts, strict=True))
        self.report["race"] = result.rounds
        self.report["evaluations"] += result.evaluations

    def _conclude(self, found: Candidates, choice: Choice, baseline: int) -> Found:
        ranking = [*self.after, *(c for c in choice.ranking if c not in self.after)]
        usable = [c for c in ranking if np.isfinite(choice.scores[c])]
        self.report["candidates"] = [self._describe(found, c, choice) for c in ranking[:SHOWN]]
        self.report["vocab_score"] = _finite(choice.scores.get(baseline))
        if not usable:
            return self._none("no candidate could be scored in time")
        best = usable[0]
        prompt = self.tuned.get(best, found.prompt(best))  # what the race's steps brought is not thrown away
        if best == baseline or prompt is None:
            return self._none("a vocabulary sample does better than all that was looked at")
        entry = found.entry(best)
        source = found.names[best] if entry is None else f"bank:{entry.id[:12]}"
        self.report |= {"chosen": found.names[best], "source": source, "score": _finite(choice.scores[best])}
        self.report |= {"expected": EXPECTED, "why": self._why(best, choice), "seconds": round(self._elapsed(), 3)}
        return Found(prompt.detach().float().cpu().clone(), source, self.report)

    def _why(self, best: int, choice: Choice) -> str:
        loss = choice.scores[best]
        why = f"lowest loss on {choice.seen[best]} samples of the job: {loss:.3g}"
        if self.after:
            why = f"lowest loss in a race of a few tuning steps: {self.after[best]:.3g} (before it {loss:.3g})"
        if self.report["vocab_score"] is not None:
            why += f"; a vocabulary sample has {self.report['vocab_score']:.3g}"
        if choice.cut_short:
            why += "; cut short by its time budget"
        return why

    def _describe(self, found: Candidates, number: int, choice: Choice) -> dict[str, Any]:
        entry = found.entry(number)
        about: dict[str, Any] = {"name": found.names[number], "score": _finite(choice.scores[number])}
        if number in self.after:
            about["after_steps"] = _finite(self.after[number])
        if entry is not None:
            about |= {"kind": entry.kind, "task": entry.task, "source": entry.source, "version": entry.version}
        return about

    def _none(self, why: str) -> Found:
        self.report |= {"chosen": None, "source": "vocab", "why": why, "seconds": round(self._elapsed(), 3)}
        return Found(None, "vocab", self.report)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _over(self, share: float) -> bool:
        return self._elapsed() > share * self.budget_s


def _own_texts(spec: Mapping[str, Any]) -> list[str]:
    """What the user wrote about the task: a ``text:`` prompt, and the note."""
    asked, note = InitialPrompt.parse(str(spec.get("initial_prompt") or "auto")), str(spec.get("note") or "")
    texts = [asked.value, note] if asked.kind == "text" else [note]
    return [text.strip() for text in texts if text.strip()]


def _finite(value: float | None) -> float | None:
    return round(float(value), 6) if value is not None and np.isfinite(value) else None
