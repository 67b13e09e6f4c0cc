"""Three contracts to start from: a token, a register of names, and an escrow that pays in a token."""

from .escrow import Escrow
from .registry import Names
from .token import Token

__all__ = ["EXAMPLES", "Escrow", "Names", "Token"]

EXAMPLES = (Token, Names, Escrow)
