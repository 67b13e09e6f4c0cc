"""The tables of the views: each has a number that prefixes its keys (docs/FORMAT.md, section 7).

Invariants:
    * Numbers are append-only.
    * ``log`` tables (below 0x8000) are a function of the journal and are never undone; ``chain`` tables
      (0x8000 to 0xEFFF) are a function of the canonical branch and are undone on a reorg.
    * Key order is height order: heights are u64 big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BLOBS",
    "BLOCKS",
    "CANONICAL",
    "DOCUMENTS",
    "FENCES",
    "HEIGHTS",
    "HISTORY",
    "INDEX_FIRST",
    "INDEX_LAST",
    "META",
    "ORPHANS",
    "PREIMAGES",
    "PRODUCERS",
    "SAFETY",
    "STATE",
    "TABLES",
    "TIMES",
    "UNDO",
    "Table",
    "index_table",
    "is_chain_key",
]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its number, name and the two bytes before each of its keys."""

    number: int
    name: str
    prefix: bytes

    @property
    def end(self) -> bytes:
        """The smallest engine key above every key of this table."""
        return (self.number + 1).to_bytes(2, "big")


def _table(number: int, name: str) -> Table:
    return Table(number, name, number.to_bytes(2, "big"))


META = _table(0x0001, "meta")
BLOCKS = _table(0x0101, "blocks")
HEIGHTS = _table(0x0102, "heights")
TIMES = _table(0x0103, "times")
PRODUCERS = _table(0x0104, "producers")
ORPHANS = _table(0x0105, "orphans")
DOCUMENTS = _table(0x0107, "documents")
SAFETY = _table(0x0108, "safety")
FENCES = _table(0x0109, "fences")
BLOBS = _table(0x010A, "blobs")
CANONICAL = _table(0x8001, "canonical")
STATE = _table(0x8002, "state")
PREIMAGES = _table(0x8003, "preimages")
UNDO = _table(0xF001, "undo")
HISTORY = _table(0xF002, "history")

INDEX_FIRST = 0x9000
INDEX_LAST = 0x9FFF

TABLES = (
    META,
    BLOCKS,
    HEIGHTS,
    TIMES,
    PRODUCERS,
    ORPHANS,
    DOCUMENTS,
    SAFETY,
    FENCES,
    BLOBS,
    CANONICAL,
    STATE,
    PREIMAGES,
    UNDO,
    HISTORY,
)


def index_table(number: int) -> Table:
    """The table of the user index with this table number."""
    assert INDEX_FIRST <= number <= INDEX_LAST
    return _table(number, f"index/{number:04x}")


def is_chain_key(key: bytes) -> bool:
    """True if the engine key belongs to a chain table."""
    return 0x80 <= key[0] < 0xF0
