"""A real pretrained LLM, one command away, and real-language tasks to tune it for (extra ``realmodel``)."""
