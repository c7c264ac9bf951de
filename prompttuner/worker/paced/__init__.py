"""Paced stand-ins for a worker and its LLM, for replays on machines without the GPUs of the trace."""
