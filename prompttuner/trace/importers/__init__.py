"""Importers of foreign traces. Each returns the jobs, the broken rows by line, and what was left out and why."""
