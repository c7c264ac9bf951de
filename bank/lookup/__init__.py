"""The look-up of an initial prompt: candidates, scores, race, and its report."""
