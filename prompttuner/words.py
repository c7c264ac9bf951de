"""Numbers with their nouns, as people write them: 1 GPU, 2 GPUs."""

from __future__ import annotations

__all__ = ["Counted"]


class Counted:
    """``str()`` of it is e.g. "1 GPU" or "3 GPUs"; put into words only when somebody reads it.

    ``many`` is the plural where another "s" does not make it.
    """

    __slots__ = ("many", "number", "one")

    def __init__(self, number: int, one: str, many: str = "") -> None:
        self.number = number
        self.one = one
        self.many = many or f"{one}s"

    def __str__(self) -> str:
        return f"{self.number} {self.one if self.number == 1 else self.many}"
