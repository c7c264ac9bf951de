"""Plan: what is expected of each job and pool, as the columns that a policy sees."""
