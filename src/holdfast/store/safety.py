"""``store.safety``: what a validator has promised, durable before it returns."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from ..consensus.records import SafetyRecord, check_identity, check_position
from ..consensus.safety import SafetyBook
from ..errors import ReadOnlyError
from ..limits import HASH_BYTES
from .writer import Writer

__all__ = ["Safety"]


class Safety:
    """The safety record of a store; every method may be called from any thread."""

    def __init__(self, book: SafetyBook, writer: Writer | None, check: Callable[[], object]) -> None:
        self._book = book
        self._writer = writer
        self._check = check

    @property
    def fenced(self) -> bool:
        """True if this copy of the store was restored, copied or moved: it signs nothing until a fence lifts it."""
        self._check()
        return self._book.fenced

    def identities(self) -> list[bytes]:
        """Every identity with a record."""
        self._check()
        return sorted(self._book.records)

    def load(self, identity: bytes) -> SafetyRecord:
        """The newest record, durable when it is returned, also one that another thread is still saving.

        Raises ``SafetyStateMissing``; absence never means 'a new node'.
        """
        self._check()
        check_identity(identity)
        return self._book.load(identity) if self._writer is None else self._writer.load_safety(identity)

    def save(self, identity: bytes, position: tuple[int, ...], payload: bytes) -> bool:
        """The payload is durable at ``position``. True if it was written, False if exactly it was there already.

        Positions compare as tuples of integers and only rise. Threads that save at once share one sync.

        Raises:
            EquivocationError: another payload is stored at this position.
            SafetyError: the position lies below the newest one.
            FencedError: this copy of the store may not sign.
        """
        writer = self._need_writer()
        record = SafetyRecord(check_identity(identity), check_position(position), payload)
        seq = writer.save_safety(record)
        if seq is None:
            writer.sync()
            return False
        writer.sync(seq)
        return True

    def fence(self) -> None:
        """This copy of the store signs nothing until a fence lifts it; durable. For whoever made it of another one.

        That the place is another one is found by itself, but a disk may give the numbers of deleted files again.
        """
        writer = self._need_writer()
        writer.sync(writer.save_incarnation(secrets.token_bytes(HASH_BYTES)))

    def lift_fence(self, identity: bytes, floor: tuple[int, ...]) -> None:
        """``identity`` may sign again, above ``floor``; durable. Only after making sure that no other copy signs."""
        writer = self._need_writer()
        writer.sync(writer.save_fence(check_identity(identity), check_position(floor)))

    def _need_writer(self) -> Writer:
        self._check()
        if self._writer is None:
            raise ReadOnlyError("the store is open read-only")
        return self._writer
