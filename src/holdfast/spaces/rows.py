"""Batches of documents as rows of the views, and what the documents parts of a frame do.

Invariants:
    * Live writes and replay give the same rows: both go through ``rows_of``.
    * These are log rows: nothing undoes them.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..journal.api import Frame, FrameSource, Kind
from ..views.api import Rows
from .records import decode_documents, row_prefix

__all__ = ["document_rows", "rows_of"]


def rows_of(space: bytes, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes]) -> Rows:
    """The rows that a batch sets and removes in ``space``."""
    prefix = row_prefix(space)
    rows: Rows = {prefix + key: None for key in deletes}
    for key, value in puts:
        rows[prefix + key] = value
    return rows


def document_rows(source: FrameSource, frame: Frame) -> Rows:
    """What the documents parts of a frame from the journal do, in their order. Raises ``CorruptionError``."""
    rows: Rows = {}
    for index, part in enumerate(frame.parts):
        if part.kind == Kind.DOCUMENTS:
            batch = decode_documents(source.part(frame, index))
            rows.update(rows_of(batch.space, batch.puts, batch.deletes))
    return rows
