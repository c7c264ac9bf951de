"""Real-language tasks, made from pinned public packages: see :mod:`prompttuner.realmodel.tasks.registry`."""
