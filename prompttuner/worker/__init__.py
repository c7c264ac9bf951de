"""Workers: the processes that tune one job's prompt together under a lease, while members come and go."""
