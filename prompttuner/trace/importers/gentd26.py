"""GenTD26 (Alibaba, cluster-trace-v2026-GenAI): requests that say which base model they need, and measured loads."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prompttuner.errors import DataError
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.profiles.load import stated
from prompttuner.trace.importers.common import Arrival, Wanted, mapped, moment
from prompttuner.trace.rows import Loaded, Problem, csv_rows, open_text, seconds

__all__ = ["import_gentd26", "profiles_of", "read_loads"]

COLUMNS = ("gmt_create", "predict_status", "exec_time_seconds", "groupId", "checkpoint_model_version_id")
FORM = "%Y-%m-%d %H:%M:%S"
DONE = "SUCCEED"


def import_gentd26(path: Path, wanted: Wanted) -> Loaded:
    """``lora_request_trace``: one line a request, of one GPU; its base model is the LLM, its group the user.

    Requests whose status is not SUCCEED, that took no time, or that name no base model are left out, counted by
    reason. The service ran for seconds what a tuning job takes minutes for: ``Wanted.factor`` stands for that.
    """
    loaded = Loaded(str(path))
    step_s = stated(["default"])["default"].step_s

    def arrivals() -> Iterator[Arrival]:
        for line, row in csv_rows(open_text(path), str(path), COLUMNS, loaded.problems):
            status, model = row["predict_status"], row["checkpoint_model_version_id"]
            if status != DONE:
                loaded.leave_out(f"its status is {status or 'empty'}")
                continue
            if not model:
                loaded.leave_out("names no base model")
                continue
            try:
                at, run_s = moment(row["gmt_create"], FORM), seconds(row, "exec_time_seconds")
            except ValueError as error:
                loaded.problems.append(Problem(line, str(error)))
                continue
            yield Arrival(line, f"gentd26-{line}", at, run_s, 1, row["groupId"], llm=model, step_s=step_s)

    return mapped(loaded, arrivals(), wanted)


def read_loads(path: Path) -> NDArray[np.float64]:
    """``basemodel_update_latency``: seconds of each measured load of a base model (its ``value`` is milliseconds).

    Raises:
        DataError: no such file or column, a broken row (named by its line), or no row above 0.
    """
    problems: list[Problem] = []
    values = []
    for line, row in csv_rows(open_text(path), str(path), ("value",), problems):
        try:
            values.append(seconds(row, "value") / 1000)
        except ValueError as error:
            raise DataError(f"{path} line {line}: {error}") from None
    if problems:
        raise DataError(f"{path} {problems[0]}")
    loads = np.array([value for value in values if value > 0])
    if not len(loads):
        raise DataError(f"{path} holds no load above 0 ms")
    return loads


def profiles_of(llms: Iterable[str], loads: NDArray[np.float64], source: str, seed: int = 0) -> list[PoolProfile]:
    """A profile of each LLM: its load is one of ``loads`` (seconds), drawn by the LLM's name and the seed.

    A switch takes the load; a start takes the load and what the stated default's start takes beyond its switch
    (interpreter and imports). All other figures are the default's. Equal names and seeds give equal profiles, whatever
    the other LLMs are.
    """
    usual = stated(["default"])["default"]
    rest_s = max(usual.start_s - usual.switch_s, 0.0)
    out = []
    for llm in sorted(set(llms)):
        rng = np.random.default_rng([seed, 0x6D, zlib.crc32(llm.encode())])
        load_s = float(rng.choice(loads))
        told = f"load of {load_s:g} s drawn from {source} (seed {seed}); other times: {usual.origin}"
        start_s = math.fsum((rest_s, load_s))
        out.append(replace(usual, name=llm, switch_s=load_s, start_s=start_s, origin=told))
    return out
