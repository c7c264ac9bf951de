"""The tuning engine: one soft prompt on one frozen LLM, step by step; knows no job, no Slurm and no other process."""
