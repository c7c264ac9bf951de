"""The agent: our process inside an allocation. It holds the LLM, takes leases, and ends itself when idle."""

from prompttuner.slurm.agent.entry import main

__all__ = ["main"]
