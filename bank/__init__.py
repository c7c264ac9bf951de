"""The Prompt Bank: stored prompts from which new jobs converge quickly. Importing it does not import torch."""

from prompttuner.bank.entry import BadEntry, Entry
from prompttuner.bank.folder import Bank, Shelf
from prompttuner.bank.results import add_result

__all__ = ["BadEntry", "Bank", "Entry", "Shelf", "add_result"]
