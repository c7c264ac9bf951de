"""The Prompt Bank: stored prompts from which new jobs converge quickly. Importing it does not import torch."""

from prompttuner.bank.entry import BadEntry, Entry
from prompttuner.bank.folder import Bank, Shelf

__all__ = ["BadEntry", "Bank", "Entry", "Shelf"]
