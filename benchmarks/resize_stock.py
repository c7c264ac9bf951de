"""The worker that ``resize.py`` runs under stock torchrun: the same tuning steps, resumed from a checkpoint.

It is as elastic as torchrun's documentation asks for: state is saved after each step by rank 0 and loaded at start.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

from prompttuner.engine.checkpoint import load_checkpoint, save_checkpoint
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.model import load_model
from prompttuner.engine.tuner import Tuner, read_data
from prompttuner.worker.elastic.group import Group


def main(folder: Path, agent: str) -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    spec = json.loads((folder / "spec.json").read_text())
    model = load_model(spec["model"])
    tuner = Tuner(model, spec, read_data(spec), initial_prompt(spec, model))
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    state = load_checkpoint(folder / "state")
    if state is not None:
        tuner.load_state(state)
    with (folder / f"steps-{agent}.jsonl").open("a", buffering=1) as steps:
        while True:
            line = {
                "step": tuner.step_index,
                "world": group.world,
                "rank": group.rank,
                "at": time.time(),
                "pid": os.getpid(),
            }
            steps.write(json.dumps(line) + "\n")
            tuner.train_step(group)
            if group.rank == 0:
                save_checkpoint(folder / "state", tuner.state())


if __name__ == "__main__":
    # The interface is set by resize.py for both sides alike.
    assert os.environ["GLOO_SOCKET_IFNAME"]
    main(Path(sys.argv[1]), sys.argv[2])
