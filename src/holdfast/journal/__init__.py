"""The journal: one append-only, checksummed, hash-chained sequence of frames that is the truth of a store.

Frames, segments and the watermark are those of docs/FORMAT.md, sections 4 to 6.
"""

from __future__ import annotations

from .api import DurableMark, Frame, FrameSource, JournalRecovery, Kind, Part, PartInfo, TipMark
from .journal import Journal, JournalOptions
from .reader import JournalReader
from .segment import SegmentInfo

__all__ = [
    "DurableMark",
    "Frame",
    "FrameSource",
    "Journal",
    "JournalOptions",
    "JournalReader",
    "JournalRecovery",
    "Kind",
    "Part",
    "PartInfo",
    "SegmentInfo",
    "TipMark",
]
