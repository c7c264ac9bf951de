"""The zygote: a process that holds the loaded LLM and forks workers, and the agent's side of it."""
