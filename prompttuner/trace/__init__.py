"""Traces of prompt-tuning jobs: one documented format, importers, a seeded generator, statistics."""
