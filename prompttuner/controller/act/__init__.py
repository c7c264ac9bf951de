"""Act: a plan's actions become rows, sbatch calls, and files of the spool."""
