"""Settings in layers, with the origin of each value."""

from __future__ import annotations

from prompttuner.config.layers import Layers, load_layers, load_settings
from prompttuner.config.settings import LocalSettings, Settings, SlurmSettings

__all__ = ["Layers", "LocalSettings", "Settings", "SlurmSettings", "load_layers", "load_settings"]
