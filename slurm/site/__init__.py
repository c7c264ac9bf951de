"""What a site is like: what Slurm tells of it, what it gives by default, and the settings that follow."""
