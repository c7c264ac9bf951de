"""Asking the controller, and looking at jobs: what the command line and the Python API have in common."""
