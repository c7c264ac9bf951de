"""The spool: a shared folder of small JSON files through which commands, controller and agents talk."""

from prompttuner.slurm.spool.layout import PROTOCOL, Spool, read_own_json
from prompttuner.slurm.spool.messages import AgentSettings, AgentStatus, Order

__all__ = ["PROTOCOL", "AgentSettings", "AgentStatus", "Order", "Spool", "read_own_json"]
