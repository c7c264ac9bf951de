"""Templates of every script that reaches sbatch, cron or systemd. A user's own folder is looked into first."""

from __future__ import annotations

from prompttuner.sbatch_templates.render import TEMPLATES, check_lines, render

__all__ = ["TEMPLATES", "check_lines", "render"]
