"""Contracts between processes: one class for each thing that crosses a process, and how it is read and written."""
