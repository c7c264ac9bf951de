"""How long those who stay stand still when a member joins or leaves: prompttuner, both ways, against stock torchrun.

``pause``: from the end of the last step before the change to the begin of the first one after it, as a member that
stays sees it (stock says only when steps begin, so there an ordinary step is taken off). ``total``: from the plan
(stock: from starting the new agent, or ending the old one) to that first step. All members run on this host. Stock
torchrun uses c10d rendezvous, with its defaults and with tuned time-outs; both with
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without which it can not grow (torch 2.13). ``--quick`` leaves stock, the restart
and the large model out.

Overhead: CPU time of a step in a lease that nobody changes against the bare tuner (main thread; the two take turns in
who goes first), plus the share of a core that the lease's other threads take; the median of the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from prompttuner import smallmodel
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.model import load_model
from prompttuner.engine.tuner import Tuner, read_data
from prompttuner.files import write_json
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.jobs import Membership
from prompttuner.smallmodel import tasks
from prompttuner.spec import make_spec, resolve
from prompttuner.worker.lease import run_lease
from prompttuner.worker.membership import propose, read_membership
from prompttuner.worker.zygote.client import Zygote

PATIENCE_S = 180.0
BATCH = 8
SETTINGS = ElasticSettings(poll_s=0.1)
STOCK = {
    "default": "",
    "tuned": "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=5",
}
Steps = list[dict[str, Any]]


def make_job(folder: Path, model: str) -> dict[str, Any]:
    """Data of one task, and a job that never ends by itself."""
    folder.mkdir(parents=True)
    rows = [{"input": row["input"], "target": row["target"]} for row in tasks.get("reverse+upper").samples(0, 128)]
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": model,
        "train": str(folder / "train.jsonl"),
        "eval": str(folder / "eval.jsonl"),
        "target": "loss<=0.000001",
        "max_iterations": 1000000,
        "prompt_length": 8,
        "batch_size": BATCH,
        "eval_every": 1000000,
        "eval_samples": 1,
        "initial_prompt": "vocab",
    }
    spec = resolve(make_spec(values), time.time()).to_json()
    write_json(folder / "spec.json", spec)
    return spec


def make_large_model(folder: Path) -> str:
    """A Llama of 134M random weights with the small model's tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for path in smallmodel.path().glob("tokenizer*"):
        shutil.copy(path, folder)
    return str(folder)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise SystemExit(f"waited {PATIENCE_S:g} s for {what}")


def read_lines(paths: Sequence[Path]) -> Steps:
    lines = []
    for path in paths:
        text = path.read_text() if path.exists() else ""
        lines += [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return lines


def measure(lines: Steps, world: int, begin: float) -> tuple[float, float] | None:
    """(pause, total) of the change at ``begin`` to ``world`` members, from what one member that stays noted."""
    lines = sorted(lines, key=lambda line: float(line["at"]))
    steps = [line for line in lines if "step" in line]
    stops = [line["at"] for line in lines if "stop" in line and line["at"] > begin]
    after = [step["at"] for step in steps if step["at"] > begin and step["world"] == world]
    if len(after) < 3:
        return None
    before = [step["at"] for step in steps if step["at"] < after[0]]
    if len(before) < 3:
        return 0.0, after[0] - begin  # the very first members: nobody waits
    if stops:
        return after[0] - stops[0], after[0] - begin
    ordinary = statistics.median(b - a for a, b in zip(before[-12:], before[-11:], strict=False))
    return max(0.0, after[0] - before[-1] - ordinary), after[0] - begin


# -- prompttuner -------------------------------------------------------------------------------------------------


class Agents:
    """Zygotes, one an agent, and the plans that a controller would write."""

    def __init__(self, names: str, model: str, settings: ElasticSettings, log: Path) -> None:
        self.zygotes = {name: Zygote.start(log / f"{name}.txt", settings.to_env()) for name in names}
        self.events: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            self.wait(name, "ready")
            self.zygotes[name].load(model)
        for name in names:
            self.wait(name, "loaded")

    def wait(self, name: str, event: str) -> None:
        def come() -> bool:
            self.events[name] += [str(e.ev) for e in self.zygotes[name].poll()]
            return event in self.events[name]

        wait_for(come, f"{event} of agent {name}")
        self.events[name].remove(event)

    def change(self, job: Path, members: str) -> tuple[float, float]:
        """Plan these members; (pause, total) of the one that was and is a member."""
        now = read_membership(job)
        plan = (now or Membership(0, ())).after(members, by="controller", addresses=dict.fromkeys(members, "127.0.0.1"))
        old = now.members if now else ()
        begin = time.time()
        assert propose(job, plan)
        for name in members:
            if name not in old:
                self.zygotes[name].lease(job, name, plan.generation, "127.0.0.1")
        stays = members[0]
        measured: tuple[float, float] = wait_for(
            lambda: measure(noted_by(job, stays), len(members), begin), f"steps of {members}"
        )
        for name in old:
            if name not in members:
                self.wait(name, "lease_ended")
        time.sleep(0.3)
        return measured

    def close(self) -> None:
        for zygote in self.zygotes.values():
            with contextlib.suppress(Exception):
                zygote.kill_lease()
            zygote.exit()


def noted_by(job: Path, agent: str) -> Steps:
    return [line for line in read_lines(sorted(job.glob(f"g*/{agent}/journal.jsonl"))) if "at" in line]


def steps_lost(job: Path) -> int:
    """Steps that were computed in one generation and computed again in the next, from all members' journals."""
    lines = read_lines(sorted(job.glob("g*/*/journal.jsonl")))
    starts = {line["g"]: line["start"] for line in lines if "start" in line}
    generations = sorted(starts)
    lost = 0
    for generation, following in itertools.pairwise(generations):
        steps = {line["step"] for line in lines if line["g"] == generation and "ids" in line}
        lost += len([step for step in steps if step >= starts[following]])
    return lost


def run_ours(work: Path, name: str, model: str, way: str, rounds: int, most: int = 3) -> dict[str, Any]:
    """1 -> 2 -> 3 -> 2 -> 1 members (or up to ``most``), ``rounds`` times."""
    make_job(work / name, model)
    agents = Agents("abc"[:most], model, replace(SETTINGS, way=way), work)
    grow, shrink = [], []
    try:
        agents.change(work / name, "a")
        for _ in range(rounds):
            grow += [agents.change(work / name, members) for members in ("ab", "abc")[: most - 1]]
            shrink += [agents.change(work / name, members) for members in ("ab", "a")[3 - most :]]
    finally:
        agents.close()
    return {**summary(grow, shrink), "steps_lost": steps_lost(work / name)}


def summary(grow: list[tuple[float, float]], shrink: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "pause_s": {"grow": median(grow, 0), "shrink": median(shrink, 0)},
        "total_s": {"grow": median(grow, 1), "shrink": median(shrink, 1)},
        "worst_pause_s": max(pause for pause, _ in grow + shrink),
        "changes": len(grow) + len(shrink),
    }


def median(measured: list[tuple[float, float]], place: int) -> float:
    return statistics.median(item[place] for item in measured)


# -- stock torchrun ----------------------------------------------------------------------------------------------


def run_stock(work: Path, name: str, conf: str) -> dict[str, Any]:
    """Grow 1 -> 2 by starting a second agent, shrink by SIGTERM to it; the first hosts the store and stays."""
    job = work / name
    make_job(job, str(smallmodel.path()))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    running: dict[str, subprocess.Popen[bytes]] = {}

    def change(act: Callable[[], None], world: int) -> tuple[float, float]:
        begin = time.time()
        act()
        measured: tuple[float, float] = wait_for(
            lambda: measure(read_lines([job / "steps-a.jsonl"]), world, begin), f"stock torchrun with {world}"
        )
        return measured

    with torchruns(running, job):
        running["a"] = start_torchrun(job, "a", port, conf)
        wait_for(lambda: len(read_lines([job / "steps-a.jsonl"])) > 12, "stock torchrun's first steps")
        grow = change(lambda: running.update(b=start_torchrun(job, "b", port, conf)), 2)
        time.sleep(1.0)
        shrink = change(lambda: running["b"].send_signal(signal.SIGTERM), 1)
    return summary([grow], [shrink])


def start_torchrun(job: Path, agent: str, port: int, conf: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:4", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={job.name}"]
    command += ["--max-restarts=10", *(["--rdzv-conf", conf] if conf else [])]
    command += [str(Path(__file__).with_name("resize_stock.py")), str(job), agent]
    env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (job / f"torchrun-{agent}.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)


@contextlib.contextmanager
def torchruns(running: dict[str, subprocess.Popen[bytes]], job: Path) -> Iterator[None]:
    """Kill all agents in the end, and their workers, which have sessions of their own."""
    try:
        yield
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for agent in running:
            for line in read_lines([job / f"steps-{agent}.jsonl"])[-1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(line["pid"], signal.SIGKILL)


# -- overhead ----------------------------------------------------------------------------------------------------


def overhead(work: Path, steps: int, rounds: int) -> float:
    """What a lease adds to a step, as a share of the bare tuner's step; the median of pairs whose order alternates."""
    model = load_model(str(smallmodel.path()))

    def bare() -> tuple[float, float]:
        tuner = Tuner(model, spec, read_data(spec), initial_prompt(spec, model))
        return step_time(lambda: bare_loop(tuner))

    def leased() -> tuple[float, float]:
        propose(job, Membership(1, ("a",), {"a": "127.0.0.1"}))
        return step_time(
            lambda: run_lease(job, agent="a", generation=1, address="127.0.0.1", model=model, settings=SETTINGS)
        )

    added: list[float] = []
    for number in range(rounds + 1):
        job = work / f"overhead-{number}"
        spec = {**make_job(job, str(smallmodel.path())), "max_iterations": steps}
        write_json(job / "spec.json", spec)
        order = (bare, leased) if number % 2 else (leased, bare)
        step, others = {}, {}
        for run in order:
            step[run], others[run] = run()
        added.append(step[leased] / step[bare] - 1.0 + others[leased] - others[bare])
    return statistics.median(added[1:])  # the first pair warms up


def bare_loop(tuner: Tuner) -> None:
    while not tuner.finished:
        if tuner.evaluation_due:
            tuner.evaluate()
        else:
            tuner.train_step()


def step_time(run: Callable[[], object]) -> tuple[float, float]:
    """Median CPU seconds of the main thread from one step's begin to the next one's; other threads' share of a core."""
    begins: list[float] = []
    wall, process, thread = time.monotonic(), time.process_time(), time.thread_time()
    original = Tuner.train_step

    def noting(self: Tuner, *args: Any, **kwargs: Any) -> Any:
        begins.append(time.thread_time())
        return original(self, *args, **kwargs)

    Tuner.train_step = noting  # type: ignore[method-assign]
    try:
        run()
    finally:
        Tuner.train_step = original  # type: ignore[method-assign]
    others = (time.process_time() - process) - (time.thread_time() - thread)
    return statistics.median(b - a for a, b in itertools.pairwise(begins[5:])), others / (time.monotonic() - wall)


# -- report ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in place only, one round, no stock torchrun")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    small, rounds = str(smallmodel.path()), 1 if options.quick else 4
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="prompttuner-resize-") as scratch:
        work = Path(scratch)
        found["in place"] = run_ours(work, "in-place", small, "in_place", rounds, 2 if options.quick else 3)
        if not options.quick:
            found["restart"] = run_ours(work, "restart", small, "restart", rounds)
            large = make_large_model(work / "large")
            found["in place, 134M model"] = run_ours(work, "in-place-large", large, "in_place", 2)
            for kind, conf in STOCK.items():
                found[f"stock torchrun, {kind}"] = run_stock(work, f"stock-{kind}", conf)
        added = overhead(work, 40 if options.quick else 80, 2 if options.quick else 10)
    report(found, added, options.quick, options.json)


def report(found: dict[str, dict[str, Any]], added: float, quick: bool, as_json: bool) -> None:
    print(f"{'':24} {'pause, s':>17}   {'plan to step, s':>17}   {'worst':>7}   steps")
    print(f"{'':24} {'grow':>8} {'shrink':>8}   {'grow':>8} {'shrink':>8}   {'pause':>7}   lost")
    for name, row in found.items():
        pause, total = row["pause_s"], row["total_s"]
        print(
            f"{name:24} {pause['grow']:8.3f} {pause['shrink']:8.3f}   {total['grow']:8.3f} {total['shrink']:8.3f}   "
            f"{row['worst_pause_s']:7.3f}   {row.get('steps_lost', '-')}"
        )
    print(f"overhead of a lease that nobody changes: {100 * added:.1f}% of a step")
    if not as_json:
        return
    value: dict[str, Any] = {
        "benchmark": "resize",
        "command": "python benchmarks/resize.py" + (" --quick" if quick else "") + " --json",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "pause_s": found["in place"]["pause_s"],
        "steps_lost": found["in place"]["steps_lost"],
        "overhead": added,
        "all": found,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if not quick:
        stock = found["stock torchrun, default"]["pause_s"]
        value["stock_default_s"] = stock
        value["stock_tuned_s"] = found["stock torchrun, tuned"]["pause_s"]
        value["restart_pause_s"] = found["restart"]["pause_s"]
        value["steps_lost"] += found["restart"]["steps_lost"]
        value["times_quicker"] = {
            kind: stock[kind] / max(found["in place"]["pause_s"][kind], 0.001) for kind in ("grow", "shrink")
        }
    print(json.dumps(value))


if __name__ == "__main__":
    main()
