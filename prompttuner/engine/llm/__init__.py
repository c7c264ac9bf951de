"""The frozen LLM: loading it, text to token ids, micro-batches, and running it behind a soft prompt."""
