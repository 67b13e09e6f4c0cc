"""Reading fields off the front of foreign bytes; what is short, too long or left over is ``InvalidInputError``."""

from __future__ import annotations

from ..errors import InvalidInputError

__all__ = ["Reader"]


class Reader:
    """Takes fields one after the other. ``what`` names the bytes in messages."""

    def __init__(self, raw: bytes, what: str) -> None:
        self.raw = raw
        self.what = what
        self.offset = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self.offset + count
        if end > len(self.raw):
            raise InvalidInputError(f"the {self.what} end inside a field", found=len(self.raw), expected=f">= {end}")
        part = self.raw[self.offset : end]
        self.offset = end
        return part

    def number(self, width: int, *, most: int | None = None) -> int:
        """The next unsigned number of ``width`` bytes, big-endian, at most ``most``."""
        value = int.from_bytes(self.take(width), "big")
        if most is not None and value > most:
            raise InvalidInputError(
                f"a number in the {self.what} is too large", found=value, limit=most, offset=self.offset - width
            )
        return value

    def text(self, count: int) -> str:
        """The next ``count`` bytes as UTF-8."""
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidInputError(f"a text in the {self.what} is not UTF-8", offset=self.offset) from exc

    def ascii(self, count: int) -> str:
        """The next ``count`` bytes as ASCII."""
        raw = self.take(count)
        if not raw.isascii():
            raise InvalidInputError(f"a name in the {self.what} is not ASCII", offset=self.offset - count)
        return raw.decode("ascii")

    def end(self) -> None:
        """Nothing happens if all was taken."""
        if self.offset != len(self.raw):
            raise InvalidInputError(f"the {self.what} have bytes left over", found=len(self.raw) - self.offset)
