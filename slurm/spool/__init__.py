"""The spool: a shared folder of small JSON files through which commands, controller and agents talk."""

from prompttuner.slurm.spool.layout import Spool, read_own, read_own_json

__all__ = ["Spool", "read_own", "read_own_json"]
