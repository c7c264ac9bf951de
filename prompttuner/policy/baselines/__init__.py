"""Other schedulers behind the same contract, for comparison and use."""
