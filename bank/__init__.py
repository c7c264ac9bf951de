"""The Prompt Bank: stored prompts from which new jobs converge quickly. Importing it does not import torch."""

from prompttuner.bank.folder.entry import BadEntry, Entry
from prompttuner.bank.folder.results import add_result
from prompttuner.bank.folder.shelf import Bank, Shelf

__all__ = ["BadEntry", "Bank", "Entry", "Shelf", "add_result"]
