"""Which branch is better: heaviest, longest or manual. Pure; ties keep the tip that was seen first."""

from __future__ import annotations

from typing import Protocol

from ..errors import InvalidInputError

__all__ = ["ForkChoice", "Heaviest", "Longest", "Manual", "fork_choice_named"]


class ForkChoice(Protocol):
    """Decides whether a branch replaces the canonical one."""

    name: str

    def prefers(self, *, work: int, height: int, tip_work: int, tip_height: int) -> bool:
        """True if the branch with this cumulative target work and height beats the tip."""


class Heaviest:
    """More cumulative target work wins."""

    name = "heaviest"

    def prefers(self, *, work: int, height: int, tip_work: int, tip_height: int) -> bool:
        return work > tip_work


class Longest:
    """More blocks win."""

    name = "longest"

    def prefers(self, *, work: int, height: int, tip_work: int, tip_height: int) -> bool:
        return height > tip_height


class Manual:
    """Only ``store.reorg`` switches branches; a block on the tip still extends it."""

    name = "manual"

    def prefers(self, *, work: int, height: int, tip_work: int, tip_height: int) -> bool:
        return False


_CHOICES: dict[str, ForkChoice] = {"heaviest": Heaviest(), "longest": Longest(), "manual": Manual()}


def fork_choice_named(name: str) -> ForkChoice:
    """The fork choice of this name. Raises ``InvalidInputError``."""
    try:
        return _CHOICES[name]
    except KeyError:
        raise InvalidInputError("unknown fork choice", found=name, expected=", ".join(_CHOICES)) from None
