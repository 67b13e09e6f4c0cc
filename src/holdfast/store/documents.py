"""``store.documents(name)``: a named space of key-value documents beside the chain, durable batch by batch.

Invariants:
    * A batch is one frame of the journal: after any crash all of it is there, or nothing.
    * Documents are log rows: no reorganisation undoes them, and none of them is part of the state or its root.
    * Readers see what is durable (``buffered``: what is written).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ..engine.api import Page
from ..errors import InvalidInputError, LimitExceeded
from ..journal.api import Kind, Part
from ..limits import DOCUMENT_KEY_BYTES_MAX
from ..spaces.records import check_batch, check_document_key, check_space, encode_documents, row_prefix, space_of_row
from ..spaces.rows import rows_of
from ..views.api import RowReader, Rows
from ..views.tables import DOCUMENTS

__all__ = ["PAGE_ROWS_MAX", "Documents", "list_spaces"]

PAGE_ROWS_MAX: Final = 1000
_SCAN_ROWS_FIRST: Final = 8
_SCAN_ROWS_MAX: Final = 128
"""Long documents may follow short ones: a page of ``scan`` has no more rows than this."""
_SCAN_BYTES: Final = 1024 * 1024
"""``scan`` reads so many rows at once that a page has about this many bytes."""
_NOTHING: Final[Mapping[bytes, bytes]] = {}

WriteRows = Callable[[list[Part], Rows], None]
"""Makes parts and rows one durable frame. Raises ``ReadOnlyError`` where nothing may be written."""


class Documents:
    """One space. Made by ``store.documents(name)``; any thread may call any method."""

    def __init__(self, name: str, rows: RowReader, check: Callable[[], object], write: WriteRows) -> None:
        self._space = check_space(name)
        self._prefix = row_prefix(self._space)
        self._rows = rows
        self._check = check
        self._write = write
        self.name = name
        """Name of the space."""

    def __repr__(self) -> str:
        return f"Documents({self.name!r})"

    # -- reading --------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The document, or ``None``. An empty document is ``b""``."""
        self._check()
        return self._rows.get(self._prefix + check_document_key(key))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The documents in the order of ``keys``, all as of one moment."""
        self._check()
        prefix = self._prefix
        return self._rows.get_many([prefix + check_document_key(key) for key in keys])

    def __contains__(self, key: bytes) -> bool:
        """True if there is a document under ``key``. Costs as much as ``get``."""
        return self.get(key) is not None

    def page(
        self,
        prefix: bytes = b"",
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        reverse: bool = False,
        limit: int = PAGE_ROWS_MAX,
    ) -> Page:
        """At most ``limit`` documents of a range in key order, all as of one moment, and where to go on.

        Args:
            prefix: only keys that begin with it.
            start: the lowest key, inclusive.
            stop: the highest key, exclusive; ``None`` for no bound.
            reverse: from the end.
            limit: 1 to 1000. Bytes are not bounded: choose it by the size of the documents.
        Returns:
            A page whose ``resume``, unless it is ``None``, is the next ``start`` (``reverse``: the next ``stop``).
        """
        self._check()
        if type(limit) is not int or not 1 <= limit <= PAGE_ROWS_MAX:
            raise InvalidInputError("the limit of a page is out of range", found=limit, expected=f"1..{PAGE_ROWS_MAX}")
        low, high = self._range(prefix, start, stop)
        if low >= high:
            return Page([], None)
        page = self._rows.scan(low, high, reverse=reverse, limit=limit)
        cut = len(self._prefix)
        return Page(
            [(key[cut:], value) for key, value in page.rows], None if page.resume is None else page.resume[cut:]
        )

    def scan(
        self, prefix: bytes = b"", *, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and documents of a range in key order, read in pages of about 1 MiB; arguments as for ``page``.

        Each page is of one moment; a later page may show later writes. For one moment use ``store.snapshot()``.
        """
        self._check()
        self._range(prefix, start, stop)  # refused here and not at the first ``next``
        return self._pages(prefix, start, stop, reverse)

    def _pages(self, prefix: bytes, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        limit = _SCAN_ROWS_FIRST
        while True:
            page = self.page(prefix, start=start, stop=stop, reverse=reverse, limit=limit)
            yield from page.rows
            if page.resume is None:
                return
            if reverse:
                stop = page.resume
            else:
                start = page.resume
            size = sum(len(key) + len(value) for key, value in page.rows)
            if size > _SCAN_BYTES:
                limit = max(1, limit // 2)
            elif 2 * size <= _SCAN_BYTES:
                limit = min(_SCAN_ROWS_MAX, limit * 2)

    def _range(self, prefix: bytes, start: bytes, stop: bytes | None) -> tuple[bytes, bytes]:
        """First engine key of a range, and the first one behind it."""
        for name, bound in (("prefix", prefix), ("start", start), ("stop", stop if stop is not None else b"")):
            if type(bound) is not bytes:
                raise InvalidInputError(f"'{name}' must be bytes", found=type(bound).__name__)
            if len(bound) > DOCUMENT_KEY_BYTES_MAX + 1:  # a page resumes right behind a key
                raise LimitExceeded(f"'{name}' is too long", found=len(bound), limit=DOCUMENT_KEY_BYTES_MAX)
        low = self._prefix + max(prefix, start)
        high = _after(self._prefix + prefix)
        return low, high if stop is None else min(high, self._prefix + stop)

    # -- writing --------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> None:
        """``value`` is stored under ``key``, durable as a commit is. Cost: one frame; ``write`` shares it."""
        self.write({check_document_key(key): value})

    def delete(self, key: bytes) -> None:
        """There is no document under ``key``; harmless if there was none. Cost: one frame."""
        self.write(deletes=(key,))

    def write(self, puts: Mapping[bytes, bytes] = _NOTHING, deletes: Iterable[bytes] = ()) -> None:
        """All of the batch is stored, durable as a commit is, or nothing of it. An empty batch writes nothing.

        Threads that write at once share one sync of the journal.

        Args:
            puts: documents by key; keys 1 to 400 bytes, documents up to 16 MiB.
            deletes: keys to remove; none of them may be in ``puts``.
        Raises:
            InvalidInputError, LimitExceeded: nothing was written.
            ReadOnlyError: the store is open read-only.
            PoisonedError: an earlier write failed; reopen the store.
        """
        self._check()
        checked, gone = check_batch(puts, deletes)
        parts = [Part(Kind.DOCUMENTS, entry, True, True) for entry in encode_documents(self._space, checked, gone)]
        self._write(parts, rows_of(self._space, checked.items(), gone))


def list_spaces(rows: RowReader) -> list[str]:
    """Names of the spaces that hold a document, in the order of their text. Cost: one short scan for each space."""
    names = []
    start: bytes | None = DOCUMENTS.prefix
    while start is not None:
        found = rows.scan(start, DOCUMENTS.end, limit=1).rows
        if not found:
            break
        key = found[0][0]
        names.append(space_of_row(key))
        start = _after(key[: 3 + key[2]])
    return sorted(names)


def _after(prefix: bytes) -> bytes:
    """The smallest key above every key that begins with ``prefix``, which begins with the number of a table."""
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes((bare[-1] + 1,))
