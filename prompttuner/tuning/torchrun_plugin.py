"""Former name of the torchrun plug-in: the metadata of an installation from before an upgrade names it."""

from __future__ import annotations

from prompttuner.worker.elastic.torchrun_plugin import torchrun_handler

__all__ = ["torchrun_handler"]
