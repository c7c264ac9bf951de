"""prompttuner.slurm"""
