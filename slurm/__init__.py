"""The one place that talks to Slurm: backends, spool, agent."""
