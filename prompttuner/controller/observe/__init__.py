"""Observe: what spool and Slurm say, brought into the rows."""
