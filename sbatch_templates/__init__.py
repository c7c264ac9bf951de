"""prompttuner.sbatch_templates"""
