"""The doctor: what it checks and how it says it."""
