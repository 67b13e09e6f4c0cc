"""The rules of the safety record, pure over the records in memory.

Invariants:
    * Positions of an identity only rise; the same position with another payload is refused for ever.
    * A fenced copy signs nothing until a fence with a position floor lifts it, identity by identity.
    * The newest record of each identity is in memory and is repeated at the start of each segment.
"""

from __future__ import annotations

from ..errors import (
    CorruptionError,
    EquivocationError,
    FencedError,
    LimitExceeded,
    Recovery,
    SafetyError,
    SafetyStateMissing,
)
from ..journal.api import Frame, FrameSource, Kind, Part
from ..limits import SAFETY_IDENTITIES_MAX
from ..views.api import RowReader, Rows
from ..views.tables import FENCES, META, SAFETY
from .records import SafetyRecord, decode_fence, decode_safety, encode_fence, encode_safety

__all__ = ["SAFETY_KINDS", "SafetyBook"]

_INCARNATION = META.prefix + b"incarnation"

SAFETY_KINDS = frozenset((Kind.SAFETY, Kind.INCARNATION, Kind.FENCE))


class SafetyBook:
    """Newest record of each identity, the incarnation the store was last used as, and fences."""

    def __init__(self) -> None:
        self.records: dict[bytes, SafetyRecord] = {}
        self.fences: dict[bytes, tuple[int, ...]] = {}
        self.incarnation: bytes | None = None
        self.fenced = False

    def check(self, record: SafetyRecord) -> bool:
        """True if ``record`` must be written, False if exactly it is stored. Raises when it may not be signed."""
        stored = self.records.get(record.identity)
        if stored is not None and record.position == stored.position:
            if record.payload == stored.payload:
                return False
            raise EquivocationError(
                "another payload was saved at this position", identity=record.identity, position=record.position
            )
        if stored is not None and record.position < stored.position:
            raise SafetyError(
                "the position lies below the newest one",
                identity=record.identity,
                found=record.position,
                newest=stored.position,
            )
        floor = self.fences.get(record.identity)
        if self.fenced and floor is None:
            raise FencedError("this copy of the store may not sign", identity=record.identity)
        if floor is not None and record.position <= floor:
            raise FencedError(
                "the position is not above the floor of the fence",
                identity=record.identity,
                found=record.position,
                floor=floor,
            )
        if stored is None and len(self.records) >= SAFETY_IDENTITIES_MAX:
            raise LimitExceeded("too many identities", limit=SAFETY_IDENTITIES_MAX)
        return True

    def load(self, identity: bytes) -> SafetyRecord:
        """The newest record. Raises ``SafetyStateMissing``: absence is never 'a new node'."""
        record = self.records.get(identity)
        if record is None:
            raise SafetyStateMissing("there is no safety record for this identity", identity=identity)
        return record

    def put(self, record: SafetyRecord) -> Rows:
        """``record`` is the newest one; the rows to publish."""
        self.records[record.identity] = record
        return {SAFETY.prefix + record.identity: encode_safety(record)}

    def check_fence(self, identity: bytes) -> None:
        """Nothing happens if ``identity`` may have a fence. Raises ``LimitExceeded``."""
        if identity not in self.fences and len(self.fences) >= SAFETY_IDENTITIES_MAX:
            raise LimitExceeded("too many identities", limit=SAFETY_IDENTITIES_MAX)

    def put_fence(self, identity: bytes, floor: tuple[int, ...]) -> Rows:
        """``identity`` may sign above ``floor``; the rows to publish."""
        self.fences[identity] = floor
        return {FENCES.prefix + identity: encode_fence(identity, floor)}

    def put_incarnation(self, fingerprint: bytes, *, first: bool) -> Rows:
        """The store is used as ``fingerprint`` from now on; any but the first incarnation is fenced."""
        if len(fingerprint) != 32:
            raise CorruptionError("an incarnation entry has a wrong length", found=len(fingerprint), expected=32)
        self.incarnation = fingerprint
        self.fenced = not first
        rows: Rows = {FENCES.prefix + identity: None for identity in self.fences}
        self.fences.clear()
        rows[_INCARNATION] = bytes((self.fenced,)) + fingerprint
        return rows

    def apply(self, source: FrameSource, frame: Frame) -> Rows:
        """What the safety parts of a frame from the journal do; the rows to publish."""
        rows: Rows = {}
        for index, part in enumerate(frame.parts):
            if part.kind == Kind.SAFETY:
                record = decode_safety(source.part(frame, index))
                stored = self.records.get(record.identity)
                if stored is None or stored.position <= record.position:
                    rows.update(self.put(record))
            elif part.kind == Kind.FENCE:
                rows.update(self.put_fence(*decode_fence(source.part(frame, index))))
            elif part.kind == Kind.INCARNATION:
                rows.update(self.put_incarnation(source.part(frame, index), first=frame.seq == 1))
        return rows

    def load_rows(self, reader: RowReader) -> None:
        """Take the rows of a flushed store as the state before replay."""
        incarnation = reader.get(_INCARNATION)
        if incarnation is not None:
            if len(incarnation) != 33:
                raise CorruptionError(
                    "the incarnation row has a wrong length",
                    found=len(incarnation),
                    expected=33,
                    recovery=Recovery.REBUILD,
                )
            self.fenced, self.incarnation = bool(incarnation[0]), incarnation[1:]
        safety = reader.scan(SAFETY.prefix, SAFETY.end, limit=SAFETY_IDENTITIES_MAX + 1).rows
        fences = reader.scan(FENCES.prefix, FENCES.end, limit=SAFETY_IDENTITIES_MAX + 1).rows
        for _, row in safety:
            record = decode_safety(row)
            self.records[record.identity] = record
        for _, row in fences:
            identity, floor = decode_fence(row)
            self.fences[identity] = floor

    def reload(self, reader: RowReader) -> None:
        """What these rows say and nothing else: records whose frame did not become durable are forgotten."""
        self.records.clear()
        self.fences.clear()
        self.incarnation, self.fenced = None, False
        self.load_rows(reader)

    def parts(self) -> list[Part]:
        """The newest records, for the start of a segment."""
        return [Part(Kind.SAFETY, encode_safety(record), True) for record in self.records.values()]
